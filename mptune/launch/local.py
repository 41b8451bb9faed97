"""This machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import Literal

import psutil
from pydantic import Field

from mptune.launch._job_files import JobFiles, SharedFolderLauncher
from mptune.launch.base import LaunchError, Submission
from mptune.paths import write_json

STOP_S = 60
"""How long the running trials have for their checkpoints."""


class Local(SharedFolderLauncher):
    """Start Ray on this machine for the time of the search; nothing listens beyond loopback.

    Source: `ray.init` with the dashboard off.
    """

    kind: Literal["local"] = "local"
    runs: str = Field("runs", description="folder of the run directories")

    def ray_address(self) -> None:
        return None

    def render(self, search: Submission) -> str:
        job = self.job(search.name)
        # Relative paths of the data are relative to the spec's own folder.
        spec = str(search.source.absolute())
        command = search.arguments(spec, str(job.run.root.absolute()))
        line = shlex.join([sys.executable, "-m", *command])
        exit_code = shlex.quote(str(job.exit_code.absolute()))
        return f"#!/bin/sh\n{line}\necho $? > {exit_code}\n"

    def submit(self, search: Submission) -> None:
        job = self.job(search.name)
        if job.id_file.exists() and _process(job) is not None:
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
        write_json(
            job.id_file, {"pid": started.pid, "started": psutil.Process(started.pid).create_time()}
        )

    def activity(self, job: JobFiles) -> str | None:
        return None if _process(job) is None else "running"

    def stop(self, name: str) -> None:
        job = self.job(name)
        process = _process(job)
        if process is not None:
            # The shell waits for the driver, so it ends when the driver has ended.
            for driver in process.children():
                driver.terminate()
            _, left = psutil.wait_procs([process], timeout=STOP_S)
            if left:
                os.killpg(process.pid, signal.SIGKILL)
        job.remove()


def _process(job: JobFiles) -> psutil.Process | None:
    """The job's process; None if it has ended, even if its process id is in use again."""
    found = job.read_id()
    try:
        process = psutil.Process(found["pid"])
        same = abs(process.create_time() - found["started"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
