"""`launchers/local.yaml`: beside this shell, and as good as the others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mptune.launch.local import STOP_S
from tests.launch.helpers import ROOT, SPEC, launch

PROFILE = str(ROOT / "launchers" / "local.yaml")

pytestmark = pytest.mark.slow


def test_a_search_runs_beside_the_shell_is_stopped_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = launch(tmp_path, "spec.yaml", "--on", PROFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny: submitted"
    assert "tiny: search: 2 of 2 trials done" in lines
    assert lines[-1] == "report: runs/tiny/report/report.html"
    assert launch(tmp_path, "status", "tiny", "--on", PROFILE).stdout == "tiny: finished\n"

    longer = ("--set", "name=long", "--set", "training.budget_tokens=4e7", "--detach")
    assert launch(tmp_path, "spec.yaml", "--on", PROFILE, *longer).returncode == 0
    assert "long: running" in launch(tmp_path, "status", "long", "--on", PROFILE).stdout
    twice = launch(tmp_path, "spec.yaml", "--on", PROFILE, *longer)
    assert twice.stderr == "mptune: long runs already; see `mptune launch logs`\n"
    began = time.monotonic()
    stopped = launch(tmp_path, "stop", "long", "--on", PROFILE)
    assert stopped.returncode == 0, stopped.stderr
    assert time.monotonic() - began < STOP_S
    assert launch(tmp_path, "status", "long", "--on", PROFILE).returncode == 3
