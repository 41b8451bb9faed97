"""Which trials belong to an arm, what is decided, and the report that is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import betaincinv

from mptune.analysis.comparison import Asked, comparison_report, runs_of, undecided_arms
from mptune.analysis.crossed import Array
from mptune.analysis.results import Outcomes, Report, StudyTrials, build_report
from mptune.spec.schema import Comparison, SearchSpec
from mptune.spec.source import SpecFile
from mptune.trial import Trial, TrialSpec
from tests import fakes

ROOT = Path(__file__).parents[2]

ARMS = {"base": -40.0, "better": -38.0, "same": -40.0}
SEQUENCES = 40


def spec(tmp_path: Path, number: int, arm: str, seed: int) -> TrialSpec:
    rate = 0.1 * (1 + list(ARMS).index(arm))
    return fakes.trial(number, tmp_path, policy={"kind": "fixed", "rate": rate}, seed=seed)


def compared(tmp_path: Path, seeds: int = 3) -> list[Trial]:
    """Seed by seed, each arm queued under another name."""
    runs = [(seed, arm) for seed in range(seeds) for arm in ARMS]
    specs = [spec(tmp_path, n, arm, seed) for n, (seed, arm) in enumerate(runs)]
    return [
        Trial(
            stage="comparison", number=s.number, state="COMPLETE", arm="earlier name", seed=s.seed,
            policy=s.policy, policy_label=s.policy_label, size_label=s.size_label,
            result=fakes.result(s), spec=s,
        )
        for s in specs
    ]  # fmt: skip


def scores(trial: Trial) -> dict[str, Array]:
    mean = list(ARMS.values())[round(10 * trial.policy["rate"]) - 1]
    own = np.random.default_rng(trial.number).normal(0, 0.5, SEQUENCES)
    return {"nats_per_sequence": mean + np.linspace(-3, 3, SEQUENCES) + own}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    comparison = Comparison(arms={name: {} for name in ARMS}, seeds=3)
    keys = {arm: spec(tmp_path, 0, arm, 0).run_key() for arm in ARMS}
    return Asked(comparison=comparison, keys=keys)


def test_an_arm_has_the_trials_of_its_key_under_any_name(tmp_path: Path, asked: Asked) -> None:
    trials = compared(tmp_path)
    arms = asked.arms(trials)
    assert {name: [t.number for t in arm] for name, arm in arms.items()} == {
        "base": [0, 3, 6], "better": [1, 4, 7], "same": [2, 5, 8],
    }  # fmt: skip
    assert Asked.model_validate_json(asked.model_dump_json()) == asked
    by_name = Asked(comparison=asked.comparison, keys={})
    renamed = [t.model_copy(update={"arm": "same"}) for t in trials[:2]]
    assert [t.number for t in by_name.arms([*renamed, *trials[2:]])["same"]] == [0, 1]


def test_only_arms_of_undecided_pairs_need_more_seeds(tmp_path: Path, asked: Asked) -> None:
    trials, prepared = compared(tmp_path), spec(tmp_path, 0, "base", 0).prepared
    assert undecided_arms(asked, trials, prepared, scores) == ["base", "same"]
    two = [t for t in trials if not asked.arms([t])["same"]]
    assert undecided_arms(asked, two, prepared, scores) == []
    assert undecided_arms(asked, [], prepared, scores) == []


def test_the_report_of_a_comparison_names_each_trial_by_its_arm(
    tmp_path: Path, asked: Asked
) -> None:
    trials, prepared = compared(tmp_path), spec(tmp_path, 0, "base", 0).prepared
    failed = trials[8].model_copy(update={"state": "FAIL", "result": None})
    found = comparison_report(asked, [*trials[:8], failed], prepared, scores)
    assert found is not None
    assert [(d.arm, d.verdict, d.seeds) for d in found.differences] == [
        ("better", "better", 3), ("same", "undecided", 2),
    ]  # fmt: skip
    assert {t.arm for t in found.arms["same"]} == {"same"}
    assert len(found.finished("same")) == 2
    same = next(each for each in found.runs if each.arm == "same")
    assert (same.runs, same.failed, same.verdict) == (3, 1, "undecided")
    assert comparison_report(asked, [], prepared, scores) is None
    assert comparison_report(None, trials, prepared, scores) is None


def test_failures_have_a_rate_and_a_verdict_of_their_own(tmp_path: Path) -> None:
    def runs(name: str, failed: int, n: int = 8, reason: str = "non_finite_loss") -> list[Trial]:
        made = [spec(tmp_path, k, name, k) for k in range(n)]
        bad = {"state": "FAIL", "result": None, "reason": reason}
        return [
            Trial(number=s.number, state="COMPLETE", seed=s.seed, result=fakes.result(s), spec=s)
            .model_copy(update=bad if k < failed else {})
            for k, s in enumerate(made)
        ]  # fmt: skip

    arms = {"base": runs("base", 0), "better": runs("better", 6), "same": runs("same", 1)}
    base, often, once = runs_of(arms, "base")
    assert (base.failed, base.low, base.verdict) == (0, 0.0, None)
    assert base.high == pytest.approx(betaincinv(0.5, 8.5, 0.975))
    assert (often.failed, often.verdict, often.skewness) == (6, "fails more often", None)
    assert 0.3 < often.low < 0.75 < often.high < 1
    assert once.verdict == "undecided"
    assert [r.verdict for r in runs_of(arms, "better")] == ["fails less often", None, "undecided"]
    machine = {**arms, "better": runs("better", 6, reason="node_lost")}
    assert [r.failed for r in runs_of(machine, "base")] == [0, 0, 1]


def test_a_report_is_a_function_of_trials_and_scores(tmp_path: Path, asked: Asked) -> None:
    trials = compared(tmp_path)
    tree = next(SpecFile.read(ROOT / "search_spaces" / "quickstart.yaml").probes()).tree
    search = SearchSpec.model_validate(tree)
    searched = [t.model_copy(update={"stage": "search", "arm": None}) for t in trials[:2]]
    waiting = Trial(number=2, state="WAITING")
    prepared = spec(tmp_path, 0, "base", 0).prepared.model_copy(update={"table": "/home/me/t1"})
    found = StudyTrials(
        prepared=prepared, searched=[*searched, waiting], compared=trials, asked=asked,
        scores=scores,
    )  # fmt: skip
    report = build_report(
        search, found, importances={"policy": 1.0}, wall_s=7.0, versions={"mptune": "1"}
    )
    assert [t.number for t in report.trials] == [0, 1]
    assert report.trials[0].mask_rates[0] == pytest.approx((0.1, 0.1, 0.1), abs=0.1)
    assert report.prepared is not None
    assert report.prepared.table == "t1"
    assert (report.spend.trials, report.spend.wall_s) == (11, 7.0)
    assert report.selection is not None
    assert report.selection.recommended == 1
    assert report.comparison is not None
    assert report.versions["mptune"] == searched[0].require_result().versions.get("mptune", "1")
    assert Report.model_validate_json(report.model_dump_json()).model_dump() == report.model_dump()
    assert Outcomes.of(report) == Outcomes(all=2, finished=2, failed=0, pruned=0)
    alone = report.model_copy(update={"trials": ()})
    assert Outcomes.of(alone) == Outcomes(all=9, finished=9, failed=0, pruned=0)
