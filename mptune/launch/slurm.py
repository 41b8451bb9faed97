"""A Slurm allocation: one sbatch script starts Ray on its nodes and runs the search."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from mptune.errors import InputError
from mptune.launch._job_files import POLL_S, JobFiles, SharedFolderLauncher
from mptune.launch.base import LaunchError, Submission, Unreachable, machines_for, trial_needs
from mptune.paths import write_json

SCRIPT = Path(__file__).with_suffix(".sh")

WAITING = {
    "PENDING": "queued by Slurm",
    "CONFIGURING": "for nodes",
    "REQUEUED": "queued again by Slurm",
    "SUSPENDED": "suspended by Slurm",
    "COMPLETING": "ending",
}


class Slurm(SharedFolderLauncher):
    """Ray on a Slurm allocation. All nodes must see the file system of the run directory.

    Source: sbatch; one `ray start` per node through srun.
    """

    kind: Literal["slurm"] = "slurm"
    runs: str = Field("runs", description="folder of the run directories, seen by all nodes")
    nodes: int = Field(1, gt=0, le=4096)
    cpus_per_node: int = Field(..., gt=0, le=4096)
    gpus_per_node: int = Field(0, ge=0, le=64)
    time_limit: str = Field("24:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$")
    account: str | None = Field(None, pattern=r"^[\w.-]+$")
    setup: tuple[str, ...] = Field((), description="shell lines to run first, e.g. module load")
    grace_s: int = Field(
        300, ge=30, le=86400, description="time for checkpoints before the job ends"
    )
    options: tuple[str, ...] = Field(
        (), description="more options of sbatch, e.g. --constraint=a100"
    )

    def ray_address(self) -> None:
        raise InputError("a Slurm profile is for `mptune launch`; `mptune search` runs here")

    def render(self, search: Submission) -> str:
        for where, gang in search.gangs():
            if machines_for(gang, self.cpus_per_node, self.gpus_per_node) > self.nodes:
                raise InputError(
                    f"{where}: {trial_needs(gang)}; the profile's {self.nodes} nodes of "
                    f"{self.cpus_per_node} CPUs and {self.gpus_per_node} GPUs do not hold that"
                )
        job = self.job(search.name)
        options = {
            "job-name": f"mptune-{search.name}",
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "time": self.time_limit,
            "partition": self.partition,
            "account": self.account,
            "output": job.log.absolute(),
            "open-mode": "append",
            "signal": f"B:USR1@{self.grace_s}",
        }
        given = [f"--{k}={v}" for k, v in options.items() if v is not None]
        settings = {
            "cpus": self.cpus_per_node,
            "gpus": self.gpus_per_node,
            "others": self.nodes - 1,
            "services": shlex.quote(str((job.folder / "ray.txt").absolute())),
            "exit_code": shlex.quote(str(job.exit_code.absolute())),
        }
        command = search.arguments(str(search.source.absolute()), str(job.run.root.absolute()))
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {o}" for o in [*given, "--requeue", *self.options]),
            "set -u",
            *self.setup,
            *(f"{k}={v}" for k, v in settings.items()),
            f"set -- {shlex.join(command)}",
            SCRIPT.read_text(encoding="utf-8"),
        ]
        return "\n".join(lines)

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

    def stop(self, name: str) -> None:
        job = self.job(name)
        number = job.read_id()["job"]
        if self.activity(job) == "running":
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
