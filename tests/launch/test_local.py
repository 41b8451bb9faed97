"""`launchers/local.yaml`: a search in the background on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from mptune.cli import main
from mptune.launch.shared_folder import Local
from mptune.paths import write_json
from tests.launch.helpers import PLAIN, ROOT, launch

PROFILE = str(ROOT / "launchers" / "local.yaml")

pytestmark = pytest.mark.slow


def test_a_search_runs_in_the_background_and_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(PLAIN)
    done = launch(tmp_path, "spec.yaml", "--on", PROFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny: submitted"
    assert "tiny: search: 2 of 2 trials done" in lines
    assert lines[-2:] == ["tiny: finished", "report: runs/tiny/report/report.html"]
    assert launch(tmp_path, "status", "tiny", "--on", PROFILE).stdout == "tiny: finished\n"

    longer = ("--set", "name=long", "--set", "training.budget_tokens=4e7", "--detach")
    assert launch(tmp_path, "spec.yaml", "--on", PROFILE, *longer).returncode == 0
    assert "long: running" in launch(tmp_path, "status", "long", "--on", PROFILE).stdout
    twice = launch(tmp_path, "spec.yaml", "--on", PROFILE, *longer)
    assert twice.stderr == "mptune: long runs already; see `mptune launch logs`\n"

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda *_: pytest.fail("the driver did not end by itself"))
        assert main(["launch", "stop", "long", "--on", PROFILE]) == 0
    assert launch(tmp_path, "status", "long", "--on", PROFILE).returncode == 3


def test_stop_now_does_not_wait_for_checkpoints(tmp_path: Path) -> None:
    launcher = Local(runs=str(tmp_path))
    job = launcher.job("slow")
    job.folder.mkdir(parents=True)
    script = "trap '' TERM; sleep 60 & wait"
    process = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
    write_json(
        job.id_file, {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    )
    launcher.stop("slow", now=True)
    assert process.wait(10) == -signal.SIGKILL
    assert not job.folder.exists()
