"""Launchers whose run directories this machine can read: this machine itself, and Slurm."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import psutil
from jinja2 import StrictUndefined, Template
from pydantic import Field

from mptune.errors import did_you_mean
from mptune.launch.base import (
    Launcher,
    LaunchError,
    Say,
    SearchState,
    Submission,
    Unreachable,
    check_gangs,
    follow,
    machines_for,
    progress,
)
from mptune.paths import RunDirectory, write_json, write_text

POLL_S = 0.5

STOP_S = 60
"""How long the trials on this machine have for their checkpoints."""

SCRIPT = Path(__file__).with_name("slurm.sh")

WAITING = {
    "PENDING": "queued by Slurm",
    "CONFIGURING": "for nodes",
    "REQUEUED": "queued again by Slurm",
    "SUSPENDED": "suspended by Slurm",
    "COMPLETING": "ending",
}


class JobFiles:
    """The files that a launcher adds to the run directory of one search."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.name = runs, name
        self.run = RunDirectory(runs / name)
        self.folder = self.run.logs / "launch"
        self.script = self.folder / "job.sh"
        self.log = self.folder / "log.txt"
        self.exit_code = self.folder / "exit-code"
        """The job writes it when it ends."""
        self.id_file = self.folder / "job.json"
        """Identifies the job: a process id or a Slurm job number."""

    def begin(self, script: str) -> None:
        """Write the files of a new job; its log is appended to that of an earlier job."""
        self.exit_code.unlink(missing_ok=True)
        write_text(self.script, script)
        self.script.chmod(0o755)

    def read_id(self) -> dict[str, Any]:
        """What identifies the job.

        Raises:
            LaunchError: no search of this name was launched.
        """
        try:
            found: dict[str, Any] = json.loads(self.id_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = [p.name for p in self.runs.glob("*/")] if self.runs.is_dir() else []
            near = did_you_mean(self.name, known)
            raise LaunchError(
                f"there is no launched search {self.name} in {self.runs}{near}"
            ) from None
        return found

    def lines(self) -> list[str]:
        """The log so far."""
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class SharedFolderLauncher(Launcher):
    """A launcher whose searches write to a folder that this machine can read."""

    runs: str

    @abstractmethod
    def activity(self, job: JobFiles) -> str | None:
        """ "running", what the job waits for, or None if it no longer exists."""

    def job(self, name: str) -> JobFiles:
        return JobFiles(Path(self.runs), name)

    def status(self, name: str) -> SearchState:
        job = self.job(name)
        job.read_id()
        # A job can end between these two lines: its exit code is read last, so as not to miss it.
        activity = self.activity(job)
        exit_code = job.exit_code.read_text(encoding="utf-8") if job.exit_code.exists() else None
        advice = f"{job.log} says why; launch it again to resume"
        if exit_code is not None and int(exit_code) == 0:
            return SearchState("succeeded")
        if exit_code is not None:
            return SearchState("failed", f"failed with exit code {int(exit_code)}; {advice}")
        if activity is None:
            return SearchState("failed", f"ended without an exit code; {advice}")
        if activity != "running":
            return SearchState("waiting", activity)
        return SearchState("running", progress(job.lines()))

    def follow(self, name: str, say: Say) -> SearchState:
        # The log is read after the state, so the log of an ended job is complete.
        def look() -> tuple[SearchState, list[str]]:
            return self.status(name), self.job(name).lines()

        return follow(name, say, look, place=self.kind.capitalize(), pause_s=POLL_S)

    def fetch(self, name: str, into: Path) -> None:
        job = self.job(name)
        job.read_id()
        if not job.run.report_html.exists():
            raise LaunchError("there is no report yet; it is written when the search ends")
        target = RunDirectory(into).report
        if target.resolve() != job.run.report.resolve():
            shutil.copytree(job.run.report, target, dirs_exist_ok=True)


class Local(SharedFolderLauncher):
    """Start Ray on this machine for the time of the search; nothing listens beyond loopback.

    Source: `ray.init` with the dashboard off.

    Attributes:
        runs: folder of the run directories.
    """

    kind: Literal["local"] = "local"
    runs: str = "runs"

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

    def stop(self, name: str, *, now: bool = False) -> None:
        job = self.job(name)
        process = _process(job)
        if process is not None:
            # The shell waits for the driver, so it ends when the driver has ended.
            for driver in () if now else process.children():
                driver.terminate()
            _, left = psutil.wait_procs([process], timeout=0 if now else STOP_S)
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


class Slurm(SharedFolderLauncher):
    """Ray on a Slurm allocation. All nodes must see the file system of the run directory.

    Source: sbatch; one `ray start` per node through srun.

    Attributes:
        runs: folder of the run directories, seen by all nodes.
        setup: shell lines to run first, e.g. module load.
        grace_s: time for checkpoints before the job ends.
        options: more options of sbatch, e.g. --constraint=a100.
    """

    kind: Literal["slurm"] = "slurm"
    runs: str = "runs"
    nodes: int = Field(1, gt=0, le=4096)
    cpus_per_node: int = Field(..., gt=0, le=4096)
    gpus_per_node: int = Field(0, ge=0, le=64)
    time_limit: str = Field("24:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$")
    account: str | None = Field(None, pattern=r"^[\w.-]+$")
    setup: tuple[str, ...] = ()
    grace_s: int = Field(300, ge=30, le=86400)
    options: tuple[str, ...] = ()

    def render(self, search: Submission) -> str:
        check_gangs(
            search,
            lambda g: machines_for(g, self.cpus_per_node, self.gpus_per_node) <= self.nodes,
            f"the profile's {self.nodes} nodes of {self.cpus_per_node} CPUs and "
            f"{self.gpus_per_node} GPUs do not hold that",
        )
        job = self.job(search.name)
        command = search.arguments(str(search.source.absolute()), str(job.run.root.absolute()))
        script = SCRIPT.read_text("utf-8") + "\n"  # Jinja removes the last one
        template = Template(script, undefined=StrictUndefined, trim_blocks=True)
        return template.render(
            p=self,
            name=search.name,
            log=job.log.absolute(),
            services=shlex.quote(str((job.folder / "ray.txt").absolute())),
            exit_code=shlex.quote(str(job.exit_code.absolute())),
            command=shlex.join(command),
        )

    def submit(self, search: Submission) -> None:
        script = self.render(search)
        job = self.job(search.name)
        if job.id_file.exists() and not self.status(search.name).ended:
            raise LaunchError(f"{search.name} is with Slurm already; see `mptune launch status`")
        job.begin(script)
        answer = _slurm("sbatch", "--parsable", str(job.script.absolute()))
        write_json(job.id_file, {"job": answer.split(";")[0].strip()})

    def activity(self, job: JobFiles) -> str | None:
        try:
            number = job.read_id()["job"]
            state = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={number}").strip()
        except LaunchError as error:
            # Slurm forgets ended jobs after some minutes.
            if "Invalid job id" in str(error):
                return None
            raise
        return WAITING.get(state, "running") if state else None

    def stop(self, name: str, *, now: bool = False) -> None:
        job = self.job(name)
        number = job.read_id()["job"]
        if not now and self.activity(job) == "running":
            # Only the script gets the signal; it lets the trials write their checkpoints.
            _slurm("scancel", "--batch", "--signal=TERM", number)
            deadline = time.monotonic() + self.grace_s
            while self.activity(job) is not None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if self.activity(job) is not None:
            _slurm("scancel", number)
        job.remove()


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise LaunchError(
            f"there is no {command[0]} here; launch from a machine with Slurm's commands"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"{command[0]} does not answer; a running search is not affected"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout).split())[:300]
        raise LaunchError(f"{command[0]} refuses: {reason}") from None
    return done.stdout
