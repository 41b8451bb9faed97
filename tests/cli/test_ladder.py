"""A comparison that tries learning rates first: disturbed, short of budget, damaged and packed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mptune.cli import main
from mptune.paths import RunDirectory
from mptune.search import application
from mptune.search.budget import Budget
from tests import studies
from tests.cli.conftest import leave_figures_out
from tests.cli.test_commands import ROOT
from tests.golden import cases, fake

SPEC = f"""\
name: climb
data: {{kind: text, source: {ROOT / "LICENSE"}, documents: paragraph, length: 32}}
model: {{family: bert, width: 32, depth: 1}}
policy: {{kind: fixed, rate: {{choice: [0.15, 0.4]}}}}
training:
  budget_tokens: 1e5
  batch_size: 8
  optimizer: {{learning_rate: {{choice: [0.0005, 0.001]}}}}
search: {{trials: 8, pruner: {{kind: none}}}}
compare:
  seeds: 2
  arms:
    fixed 40 %: {{policy: {{kind: fixed, rate: 0.4}}}}
    no trial: {{policy: {{kind: beta, a: 2, b: 2}}}}
"""
"""The worker's scores are the better the nearer a learning rate is to 0.003 (golden/fake.py)."""

RATE = "training.optimizer.learning_rate"


def command(run: Path, *more: str) -> list[str]:
    spec = run.parent / "spec.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    return ["search", str(spec), "--local", "--run-dir", str(run), *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ladder") / "run"
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_out(patch)
        assert fake.main(command(run)) == 0
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the finished run."""
    return RunDirectory(Path(shutil.copytree(made, tmp_path / "run")))


def numbers(run: Path) -> dict[str, Any]:
    """The report without what differs between two runs of one spec: places and times."""
    found: dict[str, Any] = json.loads(RunDirectory(run).report_json.read_text())
    comparison = found["input"]["comparison"]
    return {"ranking": found["ranking"], "values": comparison["values"],
            "differences": comparison["differences"]}  # fmt: skip


def climbed(run: Path) -> list[tuple[int, str]]:
    found = studies.trials(RunDirectory(run), None, "climb/ladder")
    return [(trial.number, trial.state) for trial in found]


def test_an_arm_without_a_trial_of_its_own_takes_the_best_rate_of_the_ladder(made: Path) -> None:
    own, ladder = numbers(made)["values"]
    assert (own["source"], own["values"][RATE]) == ("own trial", 0.001)
    assert ladder["source"] == "ladder"
    assert [rate for rate, _ in ladder["tried"]] == pytest.approx([0.001 / 3, 0.001, 0.003])
    assert ladder["values"][RATE] == pytest.approx(0.003)
    assert climbed(made) == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]


def test_a_ladder_that_is_killed_and_interrupted_gives_the_same_numbers(
    made: Path, tmp_path: Path
) -> None:
    again = command(tmp_path / "run")
    for place, code in (
        ("climb/ladder:1:SIGKILL", -signal.SIGKILL),
        ("climb/ladder:2:SIGINT", 130),
    ):
        done = cases.command("tests.golden.fake", again, disturb=place)
        assert done.returncode == code, done.stdout
        assert studies.trials(RunDirectory(tmp_path / "run"), None, "climb/compare") == []
    assert fake.main(again) == 0
    assert numbers(tmp_path / "run") == numbers(made)
    assert climbed(tmp_path / "run") == climbed(made)


def test_a_ladder_without_budget_ends_the_search_without_a_comparison_and_goes_on_later(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again, of_stage = command(tmp_path / "run"), application.stage_budget
    with monkeypatch.context() as patch:
        patch.setattr(
            application, "stage_budget",
            lambda spec, stage, *more: Budget(worker_s=0.0) if stage == "ladder"
            else of_stage(spec, stage, *more),
        )  # fmt: skip
        assert fake.main(again) == 0
    assert "note: ladder: 0 of 3 trials are done" in " ".join(capsys.readouterr().out.split())
    found = json.loads(RunDirectory(tmp_path / "run").report_json.read_text())
    assert found["input"]["comparison"] is None
    assert fake.main(again) == 0
    assert numbers(tmp_path / "run") == numbers(made)


def test_a_rate_that_fails_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "DIVERGES", ("climb/ladder", 2))
    assert fake.main(command(tmp_path / "run")) == 0
    _, ladder = numbers(tmp_path / "run")["values"]
    assert ladder["tried"][2][1] is None
    assert ladder["values"][RATE] == 0.001


def test_fsck_repairs_a_run_of_the_ladder(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run.root / "ladder" / "0001" / "result.json"
    kept = json.loads(result.read_text())
    result.write_text("{")
    main(["fsck", str(run.root), "--repair"])
    assert f"{result}: missing or damaged; repaired" in capsys.readouterr().out
    assert json.loads(result.read_text()) == kept
    main(["fsck", str(run.root)])
    assert "ladder" not in capsys.readouterr().out


def test_a_bundle_holds_the_ladder_and_gives_its_numbers(run: RunDirectory, tmp_path: Path) -> None:
    bundle, kept = str(tmp_path / "bundle.zip"), tmp_path / "kept"
    assert main(["bundle", str(run.root), "--out", bundle]) == 0
    assert main(["replay", bundle, "--into", str(kept)]) == 0
    assert numbers(kept) == numbers(run.root)
    assert (kept / "ladder" / "0002" / "result.json").exists()


def test_fresh_deletes_the_ladder(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = command(run.root, "--fresh", "--set", "compare=null")
    assert fake.main(again) == 2
    assert "holds 15 trials; --fresh deletes them" in capsys.readouterr().err
    assert fake.main([*again, "--yes"]) == 0
    assert not (run.root / "ladder").exists()
    assert climbed(run.root) == []
