"""`launchers/local.yaml`: a search in the background on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mptune.cli import main
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
