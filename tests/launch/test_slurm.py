"""`launchers/slurm.yaml`: its script runs with a fake sbatch and a fake srun."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.launch.helpers import PLAIN, ROOT, environment
from tests.launch.helpers import launch as launch_in

FAKE = Path(__file__).parent / "fake_slurm"


class Site:
    """A folder with a spec, a profile and a fake Slurm."""

    def __init__(self, folder: Path, **profile: object) -> None:
        self.folder = folder
        (folder / "slurm").mkdir()
        (folder / "spec.yaml").write_text(PLAIN)
        given = {**yaml.safe_load((ROOT / "launchers" / "slurm.yaml").read_text()), **profile}
        (folder / "profile.yaml").write_text(yaml.safe_dump(given))
        env = environment(folder, FAKE_SLURM=str(folder / "slurm"))
        self.env = {**env, "PATH": f"{FAKE}:{env['PATH']}"}

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return launch_in(self.folder, *arguments, "--on", "profile.yaml", env=self.env)

    @property
    def log(self) -> Path:
        return self.folder / "runs" / "long" / "logs" / "launch" / "log.txt"

    def start_long(self) -> int:
        """Start a search that runs until it is stopped; the process id of its script."""
        more = ("--set", "name=long", "--set", "training.budget_tokens=4e7", "--detach")
        done = self.launch("spec.yaml", *more)
        assert done.returncode == 0, done.stderr
        self.wait_for("started on gang")
        number = (self.log.parent / "job-number").read_text()
        return int((self.folder / "slurm" / number).read_text())

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 200
        while words not in (text := self.log.read_text() if self.log.exists() else ""):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that belong to jobs of this site."""
    found = []
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        environ = process.info["environ"] or {}
        if environ.get("FAKE_SLURM") == str(folder / "slurm"):
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 90
    while left := left_over(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_a_search_on_two_nodes_runs_to_its_report(tmp_path: Path) -> None:
    site = Site(tmp_path, nodes=2, cpus_per_node=1)
    done = site.launch("spec.yaml", "--set", "resources.workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny: submitted"
    assert "tiny: search: 2 of 2 trials done" in lines
    assert lines[-1] == "report: runs/tiny/report/report.html"
    assert site.launch("status", "tiny").stdout == "tiny: finished\n"
    wait_until_gone(tmp_path)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_job_writes_checkpoints_and_is_queued_again_before_its_time_is_up(tmp_path: Path) -> None:
    site = Site(tmp_path)
    script = site.start_long()
    assert site.launch("status", "long").stdout.startswith("long: running")
    os.kill(script, signal.SIGUSR1)
    site.wait_for("all finished work is stored")
    wait_until_gone(tmp_path)
    assert (tmp_path / "slurm" / "requeued").exists()
    assert not (site.log.parent / "exit-code").exists()
    assert list((tmp_path / "runs" / "long" / "trials").glob("*/checkpoint"))


@pytest.mark.slow
@pytest.mark.nightly
def test_stop_writes_checkpoints_and_leaves_no_process(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.start_long()
    stopped = site.launch("stop", "long")
    assert stopped.returncode == 0, stopped.stderr
    wait_until_gone(tmp_path)
    assert list((tmp_path / "runs" / "long" / "trials").glob("*/checkpoint"))
    gone = site.launch("status", "long")
    assert gone.returncode == 3
    assert "there is no launched search long" in gone.stderr


def test_a_refusal_of_sbatch_is_one_line(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "slurm" / "closed").touch()
    done = site.launch("spec.yaml")
    assert done.returncode == 3
    assert done.stderr == (
        "mptune: sbatch refuses: sbatch: error: Batch job submission failed: Invalid partition "
        "name specified\n"
    )


def test_a_refused_job_leaves_what_is_known_of_the_one_before(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "slurm" / "closed").touch()
    files = tmp_path / "runs" / "tiny" / "logs" / "launch"
    files.mkdir(parents=True)
    (files / "job-number").write_text("7")
    (files / "exit-code").write_text("7 0\n")
    assert site.launch("spec.yaml").returncode == 3
    assert site.launch("status", "tiny").stdout == "tiny: finished\n"
    (files / "job-number").write_text("8")
    assert "ended without an exit code" in site.launch("status", "tiny").stdout


def test_a_doctor_asks_slurm_for_its_commands(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.launch("doctor").stdout.splitlines() == [
        "ok: sbatch: slurm 25.05",
        "ok: squeue: slurm 25.05",
        "ok: scancel: slurm 25.05",
    ]
    site.env["PATH"] = environment(tmp_path)["PATH"]
    found = site.launch("doctor")
    assert found.returncode == 2
    assert found.stdout.startswith("wrong: sbatch: there is no sbatch here; launch from a machine")


def test_the_script_is_valid_and_requests_what_the_profile_says(tmp_path: Path) -> None:
    site = Site(tmp_path, nodes=3, gpus_per_node=8, partition="gpu", options=["--constraint=a100"])
    script = site.launch("spec.yaml", "--dry-run").stdout
    asked = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "#SBATCH --nodes=3",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "#SBATCH --constraint=a100",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --requeue",
    } <= asked
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0
