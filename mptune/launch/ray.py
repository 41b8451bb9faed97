"""A Ray cluster that is already running."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from textwrap import indent
from typing import Literal

from pydantic import Field

from mptune.errors import InputError, did_you_mean
from mptune.launch._files import progress
from mptune.launch._jobs_api import JobsApi, Silent
from mptune.launch.base import Launcher, LaunchError, Say, Search, State, pack_command, unpack

LOOK_S = 1.0
GIVE_UP_S = 600.0
PACK_S = 120.0

UNENDED = ("PENDING", "RUNNING")

WORDS: dict[str, State] = {
    "PENDING": State("waiting", "waiting: the driver starts"),
    "RUNNING": State("running", "running"),
    "SUCCEEDED": State("succeeded", "finished"),
    "STOPPED": State("failed", "stopped; launched again, it resumes"),
}


class ExistingRay(Launcher):
    """Attach to a running Ray cluster; its nodes need mptune and a shared run directory.

    Source: `ray start --head`, `ray start --address`; `mptune launch` uses the Ray Jobs API.
    """

    kind: Literal["ray"] = "ray"
    address: str = Field("auto", description="HOST:PORT of the head node, or auto")
    dashboard: str = Field(
        "http://127.0.0.1:8265",
        pattern=r"^https?://[^/\s]+/?$",
        description="where the Jobs API listens, as seen from here",
    )
    runs: str = Field(
        "~/mptune-runs",
        pattern=r"^[~/]",
        description="folder of the run directories, as the cluster's nodes see it",
    )

    def ray_address(self) -> str:
        return self.address

    def render(self, search: Search) -> str:
        self._refuse(search)
        return f"entrypoint: {self._entrypoint(search)}\nspec.yaml: |\n{indent(search.spec, '  ')}"

    def submit(self, search: Search) -> None:
        self._refuse(search)
        api = self._api()
        earlier = api.latest().get(search.name)
        if earlier and api.state(earlier) in UNENDED:
            raise LaunchError(f"{search.name} runs already; see `mptune launch logs`")
        if earlier:
            api.delete(earlier)
        api.submit(search.name, self._entrypoint(search), {"spec.yaml": search.spec})

    def status(self, name: str) -> State:
        api = self._api()
        return _state(api, _job(api, name))

    def follow(self, name: str, say: Say) -> State:
        api = self._api()
        follower = _Follower(api, name, _job(api, name), say)
        while (state := follower.look()) is None:
            time.sleep(LOOK_S)
        return state

    def fetch(self, name: str, into: Path) -> None:
        api = self._api()
        _job(api, name)
        job = api.submit(f"{name}.report", pack_command(self._run(name)), {})
        try:
            deadline = time.monotonic() + PACK_S
            while api.state(job) in UNENDED and time.monotonic() < deadline:
                time.sleep(0.3)
            unpack(api.log(job), into)
        finally:
            api.delete(job)

    def stop(self, name: str) -> None:
        api = self._api()
        job = _job(api, name)
        if api.state(job) in UNENDED:
            api.stop(job)
        api.delete(job)

    def _api(self) -> JobsApi:
        return JobsApi(self.dashboard.rstrip("/"))

    def _run(self, name: str) -> str:
        return f"{self.runs.rstrip('/')}/{name}"

    def _entrypoint(self, search: Search) -> str:
        # The shell of the cluster knows its home.
        run = self._run(search.name)
        words = search.arguments("spec.yaml", run, "--address", "auto")
        return " ".join(w if w == run else shlex.quote(w) for w in words)

    def _refuse(self, search: Search) -> None:
        if "/" in search.name or any(c.isspace() for c in self.runs):
            raise InputError(f"runs: {self.runs!r} must have no blanks")


def _job(api: JobsApi, name: str) -> str:
    jobs = api.latest()
    if name not in jobs:
        near = did_you_mean(name, jobs)
        raise LaunchError(f"there is no search {name} on the Ray cluster at {api.url}{near}")
    return jobs[name]


def _state(api: JobsApi, job: str) -> State:
    state = api.state(job)
    if state is None:
        raise LaunchError(f"{job} was deleted while it ran; launch it again to go on")
    if state == "FAILED":
        message = " ".join(api.message(job).split(", last available logs")[0].split())
        return State("failed", f"failed: {message}; its log says why, launched again it resumes")
    if state == "RUNNING":
        return State("running", f"running{progress(api.log(job))}")
    return WORDS[state]


class _Follower:
    def __init__(self, api: JobsApi, name: str, job: str, say: Say) -> None:
        self._api, self._name, self._job, self._say = api, name, job, say
        self._said, self._shown = "", 0
        self._silent_since: float | None = None

    def look(self) -> State | None:
        """The state when the search has ended; what is new is shown."""
        try:
            state = _state(self._api, self._job)
            lines = self._api.log(self._job)
        except Silent as error:
            self._silence(error)
            return None
        if self._silent_since is not None:
            self._say("the Ray cluster answers again")
            self._silent_since = None
        # What the driver said comes before the word that it has ended.
        for line in lines[self._shown :]:
            self._say(line)
        self._shown = len(lines)
        if not state.words.startswith("running") and state.words != self._said:
            self._said = state.words
            self._say(f"{self._name}: {state.words}")
        return state if state.ended else None

    def _silence(self, error: Silent) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            self._say(f"{error}; trying again")
        if now - self._silent_since > GIVE_UP_S:
            raise error
