"""What a report is made from: importance of the dimensions, and each trial's law over training."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.analysis.results import mask_rates
from mptune.cli import main
from mptune.search.run import Run
from tests import fakes
from tests.cli.conftest import leave_figures_out, use_fakes
from tests.cli.test_commands import SPEC


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, folder)
        leave_figures_out(patch)
        assert main(["search", "spec.yaml", "--set", "search.trials=8"]) == 0
        return Run.open(folder / "runs" / "demo").report("mptune search spec.yaml")


def test_importance_is_of_the_dimensions_that_were_searched(evidence) -> None:
    shares = {row.name: row.share for row in evidence.importance}
    assert set(shares) <= {name for t in evidence.trials for name in t.params}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < row.trials <= 8 for row in evidence.importance)


def test_every_trial_has_its_law_over_training(evidence) -> None:
    for trial in evidence.trials:
        assert len(trial.mask_rates) == 16
        assert all(low <= mean <= high for low, mean, high in trial.mask_rates)


def test_the_law_of_a_schedule_falls_and_that_of_a_fixed_rate_has_no_width(tmp_path: Path) -> None:
    fixed = fakes.trial(0, tmp_path, policy={"kind": "fixed", "rate": 0.25})
    assert mask_rates(fixed) == ((0.25, pytest.approx(0.25), 0.25),) * 16
    falling = fakes.trial(0, tmp_path, policy={"kind": "linear", "start": 0.9, "end": 0.1})
    means = [mean for _, mean, _ in mask_rates(falling)]
    assert means == sorted(means, reverse=True)


def test_a_policy_that_is_not_installed_here_has_no_law(tmp_path: Path) -> None:
    assert mask_rates(fakes.trial(0, tmp_path, policy={"kind": "elsewhere"})) == ()


def test_scores_by_group(finished):
    run = Run.open("runs/demo")
    assert set(run.group_scores(run.best())) == {"nats_per_sequence", "at_rungs"}
    assert set(run.group_correlations(run.prepared.table_hash)) == {"score", "difference"}
    assert run.group_correlations("another table") == {}
