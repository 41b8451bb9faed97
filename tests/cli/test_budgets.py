"""How the stages of a search share its budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mptune import dispatch
from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from mptune.search.application import Session
from mptune.search.budget import Budget, describe_shares, planned_runs, stage_budget
from mptune.search.ledger import Work
from mptune.spec.schema import SearchSpec
from mptune.spec.source import SpecFile
from mptune.study.storage import SUFFIXES
from mptune.trial import StageName
from tests import fakes
from tests.cli.test_commands import SPEC


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def spec(file: Path, **changes: Any) -> SearchSpec:
    given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return SpecFile.read(file, given).validate(data_is_here=False)


def use(**used: float) -> Any:
    return {stage: Work(used.get(stage, 0)) for stage in SUFFIXES}


def share(of: SearchSpec, stage: StageName, **used: float) -> float | None:
    return stage_budget(of, stage, use(**used)).worker_s


def test_by_numbers_of_runs_and_what_one_leaves_the_next_has(file: Path) -> None:
    of = spec(file, search__budget_worker_seconds=100, search__confirm__top=2)
    assert planned_runs(of) == {"search": 4, "confirmation": 4, "ladder": 0, "comparison": 4}
    assert share(of, "search") == pytest.approx(100 / 3)
    assert share(of, "confirmation", search=20) == pytest.approx(40)
    assert share(of, "comparison", search=20, confirmation=30) == pytest.approx(50)
    assert share(of, "comparison", search=80, confirmation=30) == 0


def test_the_ladder_shares_what_is_left_with_the_comparison(file: Path) -> None:
    of = spec(file, search__budget_worker_seconds=100)
    shares = [
        stage_budget(of, stage, use(search=50, ladder=used), ladder=6).worker_s
        for stage, used in (("ladder", 0.0), ("comparison", 10.0))
    ]
    assert shares == pytest.approx([50 * 6 / 10, 40])


def test_a_search_that_is_made_longer_does_not_have_what_its_comparison_has_used(
    file: Path,
) -> None:
    of = spec(file, search__budget_worker_seconds=100)
    assert share(of, "search") == pytest.approx(50)
    assert share(of, "search", search=50, comparison=70) == pytest.approx(30)


def test_without_a_budget_there_is_no_limit(file: Path) -> None:
    assert stage_budget(spec(file), "search", use(search=1e9)) == Budget()
    assert describe_shares(spec(file)) == ""


def test_a_dry_run_shows_the_shares(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(file), "--dry-run", "--set", "search.budget_gpu_hours=6"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "budgets: search: 3 of search.budget_gpu_hours; comparison: 3 of search.budget_gpu_hours "
        in told
    )


def test_the_shares_of_a_dry_run_leave_room_for_a_ladder(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = "training.optimizer.learning_rate={float: [1e-4, 1e-2], log: true}"
    given = [rates, "search.budget_worker_seconds=140"]
    words = [word for override in given for word in ("--set", override)]
    assert main(["search", str(file), "--dry-run", *words]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ladder: up to 6 runs, 3 for each arm" in told
    shares = [f"{s}: {n} of search.budget_worker_seconds" for s, n in
              (("search", 40), ("ladder", 60), ("comparison", 40))]  # fmt: skip
    assert f"budgets: {'; '.join(shares)} workers" in told
    read = SpecFile.read(file, given)
    session = Session(read, read.validate(data_is_here=False))
    budget = stage_budget(session.spec, "search", use(), session._ladder_runs)
    assert budget.worker_s == pytest.approx(40), "the search is stopped at the share printed"


def test_each_stage_that_ends_early_says_so_and_goes_on_with_more(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(fakes.FAKE_WORKER))
    command = ["search", "spec.yaml", "--set", "search.budget_worker_seconds=1e-6"]
    assert main(command) == 3
    told = capsys.readouterr()
    assert "note: search: 0 of 4 trials are done, " in told.out
    assert "share the budget; with a larger one" in told.out
    assert "no trial has finished" in told.err
    assert main(["search", "spec.yaml", "--set", "search.budget_worker_seconds=1e6"]) == 0
    assert "have ended" not in capsys.readouterr().out
    # More seeds, and nothing left for them: what there is is compared.
    assert main([*command, "--set", "compare.seeds=4"]) == 0
    told = capsys.readouterr()
    assert "note: comparison: 4 of 8 trials are done, " in told.out
