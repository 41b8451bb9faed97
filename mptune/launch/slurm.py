"""A Slurm allocation: one sbatch script that starts Ray over its nodes and drives the search."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from mptune.errors import InputError
from mptune.launch._files import LOOK_S, Launched
from mptune.launch.base import Launcher, LaunchError, Say, Search, State, in_words, machines_for

WAITING = {
    "PENDING": "queued by Slurm",
    "CONFIGURING": "for nodes",
    "REQUEUED": "queued again by Slurm",
    "SUSPENDED": "suspended by Slurm",
    "COMPLETING": "ending",
}


class Slurm(Launcher):
    """Ray over a Slurm allocation. The run directory is on a file system that all nodes see.

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
    setup: tuple[str, ...] = Field((), description="shell lines first, e.g. module load")
    grace_s: int = Field(300, ge=30, le=86400, description="for checkpoints before the time is up")
    options: tuple[str, ...] = Field((), description="more for sbatch, e.g. --constraint=a100")

    def ray_address(self) -> None:
        raise InputError("a Slurm profile is for `mptune launch`; `mptune search` runs here")

    def render(self, search: Search) -> str:
        self._refuse(search)
        job = self._job(search.name)
        spec = str(search.source.absolute())
        run = str(job.run.root.absolute())
        command = shlex.join(search.arguments(spec, run))
        return "\n".join([*self._header(search.name, job), "", *self._body(job, command), ""])

    def _header(self, name: str, job: Launched) -> list[str]:
        chosen = {
            "job-name": f"mptune-{name}",
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
        given = [f"--{k}={v}" for k, v in chosen.items() if v is not None]
        return ["#!/bin/bash", *(f"#SBATCH {o}" for o in [*given, "--requeue", *self.options])]

    def _body(self, job: Launched, command: str) -> list[str]:
        exit_code = shlex.quote(str(job.exit_code.absolute()))
        text = _BODY.format(
            setup="\n".join(self.setup),
            cpus=self.cpus_per_node,
            gpus=self.gpus_per_node,
            others=self.nodes - 1,
            command=command,
            exit_code=exit_code,
            services=shlex.quote(str((job.folder / "ray.txt").absolute())),
        )
        return text.splitlines()

    def submit(self, search: Search) -> None:
        script = self.render(search)
        job = self._job(search.name)
        if job.ticket.exists() and not self.status(search.name).ended:
            raise LaunchError(f"{search.name} is with Slurm already; see `mptune launch status`")
        job.begin(script)
        answer = _slurm("sbatch", "--parsable", str(job.script.absolute()))
        job.record({"job": answer.split(";")[0].strip()})

    def status(self, name: str) -> State:
        job = self._job(name)
        number = job.job()["job"]
        return job.state(lambda: _in_words(number))

    def follow(self, name: str, say: Say) -> State:
        return self._job(name).follow(lambda: self.status(name), say)

    def fetch(self, name: str, into: Path) -> None:
        job = self._job(name)
        job.job()
        job.fetch(into)

    def stop(self, name: str) -> None:
        job = self._job(name)
        number = job.job()["job"]
        if _in_words(number) == "running":
            # To the script alone, which lets the trials write their checkpoints.
            _slurm("scancel", "--batch", "--signal=TERM", number)
            deadline = time.monotonic() + self.grace_s
            while _in_words(number) is not None and time.monotonic() < deadline:
                time.sleep(LOOK_S)
        if _in_words(number) is not None:
            _slurm("scancel", number)
        job.forget()

    def _job(self, name: str) -> Launched:
        return Launched(Path(self.runs), name)

    def _refuse(self, search: Search) -> None:
        for where, gang in search.gangs():
            if machines_for(gang, self.cpus_per_node, self.gpus_per_node) > self.nodes:
                raise InputError(
                    f"{where}: {in_words(gang)}; the profile's {self.nodes} nodes of "
                    f"{self.cpus_per_node} CPUs and {self.gpus_per_node} GPUs do not hold that"
                )


def _in_words(number: str) -> str | None:
    try:
        state = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={number}").strip()
    except LaunchError as error:
        # Slurm forgets ended jobs after some minutes.
        if "Invalid job id" in str(error):
            return None
        raise
    if not state:
        return None
    return WAITING.get(state, "running")


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise LaunchError(
            f"there is no {command[0]} here; launch from a machine that has Slurm's commands"
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} does not answer; a search that runs goes on") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout).split())[:300]
        raise LaunchError(f"{command[0]} refuses: {reason}") from None
    return done.stdout


_BODY = """\
set -u
{setup}
# Other users of these nodes see the ports, so Ray asks everybody for this job's own token.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 10000))
folder=/tmp/ray-$SLURM_JOB_ID
srun --nodes=1 --ntasks=1 --nodelist="$head" \\
  ray start --head --block --node-ip-address="$address" --port=$port \\
    --temp-dir=$folder --include-dashboard=false \\
    --ray-client-server-port=$((port + 10000)) --dashboard-agent-listen-port=0 \\
    --num-cpus={cpus} --num-gpus={gpus} >> {services} 2>&1 &
ray_head=$!
ray_others=
for attempt in $(seq 60); do
  ray health-check --address "$address:$port" > /dev/null 2>&1 && break
  sleep 1
done
if [ {others} -gt 0 ]; then
  srun --nodes={others} --ntasks={others} --exclude="$head" \\
    ray start --block --address="$address:$port" --dashboard-agent-listen-port=0 \\
      --num-cpus={cpus} --num-gpus={gpus} >> {services} 2>&1 &
  ray_others=$!
fi
# A trial that needs all nodes would be refused while one is still starting.
python - "$address:$port" $(({others} + 1)) << 'END' || exit 1
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    if time.monotonic() > deadline:
        sys.exit("Ray did not start on every node within 5 minutes")
    time.sleep(0.5)
END

# Before the time is up: the trials' checkpoints, then the queue again.
again=
trap 'again=yes; kill -TERM $driver' USR1
trap 'kill -TERM $driver' TERM
{command} --address "$address:$port" &
driver=$!
wait $driver
code=$?
# A trap ends the first wait; the driver is then still writing.
while kill -0 $driver 2> /dev/null; do wait $driver; code=$?; done
# The head last: the others take their leave of it.
for service in $ray_others $ray_head; do kill -TERM $service; wait $service; done 2> /dev/null
rm -rf "$folder"
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID" && exit 0; fi
echo $code > {exit_code}
exit $code
"""
