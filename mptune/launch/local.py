"""This machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field

from mptune.launch._files import Launched
from mptune.launch.base import Launcher, LaunchError, Say, Search, State

STOP_S = 60
"""For the checkpoints of the running trials."""


class Local(Launcher):
    """Start Ray on this machine for the time of the search; nothing listens beyond loopback.

    Source: `ray.init` with the dashboard off.
    """

    kind: Literal["local"] = "local"
    runs: str = Field("runs", description="folder of the run directories")

    def ray_address(self) -> None:
        return None

    def render(self, search: Search) -> str:
        job = self._job(search.name)
        # The data's relative paths are relative to the spec as it was given.
        spec = str(search.source.absolute())
        command = search.arguments(spec, str(job.run.root.absolute()))
        line = shlex.join([sys.executable, "-m", *command])
        exit_code = shlex.quote(str(job.exit_code.absolute()))
        return f"#!/bin/sh\n{line}\necho $? > {exit_code}\n"

    def submit(self, search: Search) -> None:
        job = self._job(search.name)
        if job.ticket.exists() and _process(job) is not None:
            raise LaunchError(f"{search.name} runs already; see `mptune launch logs`")
        job.begin(self.render(search))
        with job.log.open("ab") as log:
            started = subprocess.Popen(
                ["/bin/sh", str(job.script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        job.record({"pid": started.pid, "started": psutil.Process(started.pid).create_time()})

    def status(self, name: str) -> State:
        job = self._job(name)
        job.job()
        return job.state(lambda: None if _process(job) is None else "running")

    def follow(self, name: str, say: Say) -> State:
        return self._job(name).follow(lambda: self.status(name), say)

    def fetch(self, name: str, into: Path) -> None:
        job = self._job(name)
        job.job()
        job.fetch(into)

    def stop(self, name: str) -> None:
        job = self._job(name)
        job.job()
        process = _process(job)
        if process is not None:
            # To the driver alone: its shell waits for it, and so the end of one is that of both.
            for driver in process.children():
                driver.terminate()
            _, left = psutil.wait_procs([process], timeout=STOP_S)
            if left:
                os.killpg(process.pid, signal.SIGKILL)
        job.forget()

    def _job(self, name: str) -> Launched:
        return Launched(Path(self.runs), name)


def _process(job: Launched) -> psutil.Process | None:
    """The job's process, unless it has ended or its number belongs to another by now."""
    ticket = job.job()
    try:
        process = psutil.Process(ticket["pid"])
        same = abs(process.create_time() - ticket["started"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
