"""A Ray cluster that is already running, through its Jobs API.

The only use of Ray in this folder is `JobSubmissionClient` (`ray.job_submission`). It is imported
when a cluster is asked, so that `mptune launch --help` and other profiles do not load Ray.
"""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

from pydantic import Field

from mptune.errors import did_you_mean
from mptune.launch.base import (
    Diagnosis,
    Launcher,
    LaunchError,
    Say,
    SearchState,
    Submission,
    Unreachable,
    diagnose,
    driver_log,
    follow,
    pack_command,
    progress,
    quote_path,
    unpack,
)

POLL_S = 1.0
PACK_S = 120.0
"""How long the cluster may take to pack a report."""
STOP_S = 60.0
"""How long a driver may take to write checkpoints and end."""
TIMEOUT_S = 30.0
"""How long one request may take. Ray's client would wait for ever."""

METADATA_KEY = "mptune-search"
"""A job's metadata holds the name of its search under this key."""

NOT_ENDED = ("PENDING", "RUNNING")
STATES = {
    "PENDING": SearchState("waiting", "the driver starts"),
    "SUCCEEDED": SearchState("succeeded"),
    "STOPPED": SearchState("failed", "stopped; launch it again to resume"),
}


class ExistingRay(Launcher):
    """Attach to a running Ray cluster; its nodes need mptune and a shared run directory.

    Source: `ray start --head`, `ray start --address`; `mptune launch` uses the Ray Jobs API.

    Attributes:
        address: HOST:PORT of the head node, or auto.
        dashboard: where the Jobs API listens, as seen from here.
        runs: folder of the run directories, as the cluster's nodes see it.
    """

    kind: Literal["ray"] = "ray"
    address: str = "auto"
    dashboard: str = Field("http://127.0.0.1:8265", pattern=r"^https?://[^/\s]+/?$")
    runs: str = Field("~/mptune-runs", pattern=r"^~?/[^\r\n]*$")

    def ray_address(self) -> str:
        return self.address

    def render(self, search: Submission) -> str:
        return f"entrypoint: {self.entrypoint(search)}\nspec.yaml: |\n{indent(search.spec, '  ')}"

    def doctor(self) -> Iterator[Diagnosis]:
        yield diagnose("Ray Jobs API", lambda: f"{len(_latest_jobs(self._client()))} searches")

    def submit(self, search: Submission) -> None:
        entrypoint = self.entrypoint(search)
        client = self._client()
        earlier = _latest_jobs(client).get(search.name)
        if earlier and earlier.status in NOT_ENDED:
            raise LaunchError(f"{search.name} runs already; see `mptune launch logs`")
        if earlier:
            client.delete_job(earlier.submission_id)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "spec.yaml").write_text(search.spec, encoding="utf-8")
            _start_job(client, search.name, entrypoint, {"working_dir": folder})

    def status(self, name: str) -> SearchState:
        client = self._client()
        job = self._job(client, name)
        running = job.status == "RUNNING"
        _, log = driver_log(client.get_job_logs(job.submission_id) if running else "")
        return _state(job, log)

    def follow(self, name: str, say: Say) -> SearchState:
        client = self._client()
        job_id = self._job(client, name).submission_id

        def look() -> tuple[SearchState, list[str]]:
            job = next((j for j in client.list_jobs() if j.submission_id == job_id), None)
            if job is None:
                raise LaunchError(f"{job_id} was deleted while it ran; launch it again to resume")
            # The log is read after the state, so the log of an ended job is complete.
            _, log = driver_log(client.get_job_logs(job_id))
            return _state(job, log), log

        return follow(name, say, look, place="the Ray cluster", pause_s=POLL_S)

    def fetch(self, name: str, into: Path) -> None:
        client = self._client()
        self._job(client, name)
        run = f"{self.runs.rstrip('/')}/{name}"
        job_id = _start_job(client, f"{name}.report", pack_command(run), {})
        try:
            _await_end(client, job_id, PACK_S)
            unpack(client.get_job_logs(job_id).splitlines(), into)
        finally:
            client.delete_job(job_id)

    def stop(self, name: str, *, now: bool = False) -> None:
        client = self._client()
        job = self._job(client, name)
        if job.status in NOT_ENDED:
            client.stop_job(job.submission_id)
            if not _await_end(client, job.submission_id, STOP_S):
                raise LaunchError(f"{job.submission_id} does not stop; try again")
        client.delete_job(job.submission_id)

    def _client(self) -> Any:
        return jobs_client(self.dashboard.rstrip("/"))

    def _job(self, client: Any, name: str) -> Any:
        """The latest job of a search.

        Raises:
            LaunchError: there is none.
        """
        jobs = _latest_jobs(client)
        if name not in jobs:
            url, near = self.dashboard.rstrip("/"), did_you_mean(name, jobs)
            raise LaunchError(f"there is no search {name} on the Ray cluster at {url}{near}")
        return jobs[name]

    def entrypoint(self, search: Submission) -> str:
        """The shell command that runs the driver on the cluster's head."""
        run = f"{self.runs.rstrip('/')}/{search.name}"
        words = search.arguments("spec.yaml", run, "--address", "auto")
        # The cluster's shell replaces `~`.
        return " ".join(quote_path(w) if w == run else shlex.quote(w) for w in words)


def jobs_client(url: str) -> Any:
    """Ray's `JobSubmissionClient` for the cluster at `url`, with errors of this package.

    Raises:
        LaunchError: `ray[default]` is not installed, or the cluster refuses the request.
        Unreachable: the cluster does not answer.
    """
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        if find_spec("requests") is None:  # The client needs it, and `pip install ray` lacks it.
            raise ImportError("requests")
    except ImportError:
        raise LaunchError(
            "the Ray Jobs API needs Ray's client: pip install 'mptune[cluster]'"
        ) from None

    class JobsClient(JobSubmissionClient):
        # Every request passes through this method. Ray's own sets no timeout.
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            try:
                answer = super()._do_request(method, endpoint, timeout=TIMEOUT_S, **options)
            except AuthenticationError:
                raise LaunchError(
                    f"{url} does not accept your token; set RAY_AUTH_TOKEN to the cluster's"
                ) from None
            except OSError as error:
                # The cause is last: "... (Caused by X('...: [Errno 111] Connection refused'))".
                reason = str(error).rsplit(": ", 1)[-1].removesuffix("))").strip("'\"")
                raise Unreachable(
                    f"no Ray Jobs API answers at {url} ({reason}); a running search is not affected"
                ) from None
            if answer.status_code in (502, 503, 504):
                raise Unreachable(
                    f"{url} cannot answer now ({answer.status_code}); a running search is not "
                    "affected"
                )
            return answer

        def _raise_error(self, answer: Any) -> None:
            text = " ".join(answer.text.split())[:300]
            raise LaunchError(f"{url} refuses ({answer.status_code}): {text}")

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    token = _token()
    # Ray's client would take these two addresses rather than that of the profile.
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        return JobsClient(url, headers={"Authorization": f"Bearer {token}"} if token else None)
    except (OSError, RuntimeError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LaunchError(f"{url} is not a Jobs API that this Ray understands: {reason}") from None
    finally:
        os.environ.update(hidden)


def _token() -> str | None:
    """The cluster's token, from the places where Ray's own tools look for it, in their order.

    Ray's client sends it only if RAY_AUTH_MODE is set here as well.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN")
    if token is None and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    return token


def _start_job(client: Any, search: str, entrypoint: str, environment: dict[str, str]) -> str:
    """Start `entrypoint` on the head node; the job's id.

    Every id is new: Ray keeps the log of a deleted job, and would append to it.
    """
    return client.submit_job(
        entrypoint=entrypoint,
        submission_id=f"{search}-{time.time_ns():x}",
        runtime_env=environment,
        metadata={METADATA_KEY: search},
    )


def _latest_jobs(client: Any) -> dict[str, Any]:
    """The latest job of every search, by the search's name."""
    jobs = [j for j in client.list_jobs() if METADATA_KEY in (j.metadata or {}) and j.submission_id]
    jobs.sort(key=lambda j: j.start_time or 0)
    return {j.metadata[METADATA_KEY]: j for j in jobs}


def _await_end(client: Any, job_id: str, timeout_s: float) -> bool:
    """Wait until the job has ended; False if it has not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while client.get_job_status(job_id) in NOT_ENDED:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def _state(job: Any, log: list[str]) -> SearchState:
    """The state of a search whose job is `job`; a running one needs the job's log."""
    if job.status == "FAILED":
        message = " ".join((job.message or "").split(", last available logs")[0].split())
        return SearchState("failed", f"failed: {message}; its log says why; launch again to resume")
    if job.status == "RUNNING":
        return SearchState("running", progress(log))
    return STATES[job.status]
