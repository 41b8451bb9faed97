"""Ray on a Slurm allocation, through sbatch, squeue and scancel."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from jinja2 import StrictUndefined, Template
from pydantic import Field

from mptune.errors import did_you_mean, plural
from mptune.launch.base import (
    Diagnosis,
    Launcher,
    LaunchError,
    Say,
    SearchState,
    Submission,
    Unreachable,
    check_gangs,
    diagnose,
    follow,
    machines_for,
    progress,
)
from mptune.paths import Inside, RunDirectory, write_text

POLL_S = 0.5

SCRIPT = Path(__file__).with_name("slurm.sh")

WAITING = {
    "PENDING": "queued by Slurm",
    "CONFIGURING": "for nodes",
    "REQUEUED": "queued again by Slurm",
    "SUSPENDED": "suspended by Slurm",
    "COMPLETING": "ending",
}


@dataclass(frozen=True)
class JobFiles:
    """The files that the launcher adds to the run directory of one search."""

    root: Path

    script = Inside("job.sh")
    number = Inside("job-number")
    """Slurm's number of the job."""
    log = Inside("log.txt")
    services = Inside("ray.txt")
    """What Ray's own processes print."""
    exit_code = Inside("exit-code")
    """The job writes its number and its exit code when it ends."""

    def lines(self) -> list[str]:
        """The log so far."""
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def exit_code_of(self, number: str) -> int | None:
        """The exit code of this job; None if it has not ended, or if an earlier job has."""
        if not self.exit_code.exists():
            return None
        job, code = self.exit_code.read_text(encoding="utf-8").split()
        return int(code) if job == number else None


class Slurm(Launcher):
    """Ray on a Slurm allocation. All nodes must see the file system of the run directory.

    Source: sbatch; one `ray start` per node through srun.

    Attributes:
        runs: folder of the run directories, seen by this machine and all nodes.
        setup: shell lines to run first, e.g. module load.
        grace_s: time for checkpoints before the job ends.
        options: more options of sbatch, e.g. --constraint=a100.
    """

    kind: Literal["slurm"] = "slurm"
    runs: str = Field("runs", pattern=r"^[^\r\n]+$")
    nodes: int = Field(1, gt=0, le=4096)
    cpus_per_node: int = Field(..., gt=0, le=4096)
    gpus_per_node: int = Field(0, ge=0, le=64)
    time_limit: str = Field("24:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$")
    account: str | None = Field(None, pattern=r"^[\w.-]+$")
    setup: tuple[str, ...] = ()
    grace_s: int = Field(300, ge=30, le=86400)
    options: tuple[Annotated[str, Field(pattern=r"^--?\w[^\r\n]*$")], ...] = ()

    def render(self, search: Submission) -> str:
        check_gangs(
            search,
            lambda g: machines_for(g, self.cpus_per_node, self.gpus_per_node) <= self.nodes,
            f"the profile has only {plural(self.nodes, 'node')} of "
            f"{plural(self.cpus_per_node, 'CPU')} and {plural(self.gpus_per_node, 'GPU')}",
        )
        run, job = self._run(search.name), self._job(search.name)
        # Relative paths of the data are relative to the spec's own folder.
        command = search.arguments(str(search.source.absolute()), str(run.root.absolute()))
        script = SCRIPT.read_text("utf-8") + "\n"  # Jinja removes the last one
        template = Template(script, undefined=StrictUndefined, trim_blocks=True)
        return template.render(
            p=self,
            name=search.name,
            log=job.log.absolute(),
            services=shlex.quote(str(job.services.absolute())),
            exit_code=shlex.quote(str(job.exit_code.absolute())),
            command=shlex.join(command),
        )

    def doctor(self) -> Iterator[Diagnosis]:
        for command in ("sbatch", "squeue", "scancel"):
            yield diagnose(command, partial(_slurm, command, "--version"))

    def submit(self, search: Submission) -> None:
        script = self.render(search)
        job = self._job(search.name)
        if job.number.exists() and not self.status(search.name).ended:
            raise LaunchError(f"{search.name} is with Slurm already; see `mptune launch status`")
        write_text(job.script, script)
        job.script.chmod(0o755)
        answer = _slurm("sbatch", "--parsable", str(job.script.absolute()))
        write_text(job.number, answer.split(";")[0].strip())

    def status(self, name: str) -> SearchState:
        job = self._submitted(name)
        # A job can end between these two lines: its exit code is read last, so as not to miss it.
        activity = self._activity(job)
        exit_code = job.exit_code_of(job.number.read_text(encoding="utf-8"))
        advice = f"{job.log} says why; launch it again to resume"
        if exit_code == 0:
            return SearchState("succeeded")
        if exit_code is not None:
            return SearchState("failed", f"failed with exit code {exit_code}; {advice}")
        if activity is None:
            return SearchState("failed", f"ended without an exit code; {advice}")
        if activity != "running":
            return SearchState("waiting", activity)
        return SearchState("running", progress(job.lines()))

    def follow(self, name: str, say: Say) -> SearchState:
        # The log is read after the state, so the log of an ended job is complete.
        def look() -> tuple[SearchState, list[str]]:
            return self.status(name), self._job(name).lines()

        return follow(name, say, look, place="Slurm", pause_s=POLL_S)

    def fetch(self, name: str, into: Path) -> None:
        self._submitted(name)
        run, target = self._run(name), RunDirectory(into).report
        if not run.report_html.exists():
            raise LaunchError("there is no report yet; it is written when the search ends")
        if target.resolve() != run.report.resolve():
            shutil.copytree(run.report, target, dirs_exist_ok=True)

    def stop(self, name: str, *, now: bool = False) -> None:
        job = self._submitted(name)
        number = job.number.read_text(encoding="utf-8")
        if not now and self._activity(job) == "running":
            # Only the script gets the signal; it lets the trials write their checkpoints.
            _slurm("scancel", "--batch", "--signal=TERM", number)
            deadline = time.monotonic() + self.grace_s
            while self._activity(job) is not None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if self._activity(job) is not None:
            _slurm("scancel", number)
        shutil.rmtree(job.root)

    def _run(self, name: str) -> RunDirectory:
        return RunDirectory(Path(self.runs, name))

    def _job(self, name: str) -> JobFiles:
        return JobFiles(self._run(name).logs / "launch")

    def _submitted(self, name: str) -> JobFiles:
        """The files of a job that was submitted.

        Raises:
            LaunchError: no search of this name was launched.
        """
        job = self._job(name)
        if not job.number.exists():
            near = did_you_mean(name, [p.name for p in Path(self.runs).glob("*/")])
            raise LaunchError(f"there is no launched search {name} in {self.runs}{near}")
        return job

    def _activity(self, job: JobFiles) -> str | None:
        """ "running", what the job waits for, or None if it no longer exists."""
        number = job.number.read_text(encoding="utf-8")
        try:
            state = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={number}").strip()
        except LaunchError as error:
            # Slurm forgets ended jobs after some minutes.
            if "Invalid job id" in str(error):
                return None
            raise
        return WAITING.get(state, "running") if state else None


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
