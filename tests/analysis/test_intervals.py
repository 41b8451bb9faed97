"""Intervals of scores: by group, for what they are claimed, away from home, the worst domain."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mptune.analysis.intervals import (
    Condition,
    by_group,
    group_correlations,
    lml_half_width,
    score_by_rule,
    scores_by_condition,
    worst_domain,
)
from mptune.lml.groups import group_scores
from mptune.trial import LMLScore, MissingScore, TrialResult
from tests.fakes import result, trial

RNG = np.random.default_rng(0)
GROUPS = np.arange(60) % 10
SCORES = {
    "nats_per_sequence": RNG.normal(size=60) + RNG.normal(size=10)[GROUPS],
    "rows": np.arange(60),
    "groups": GROUPS,
    "at_rungs": RNG.normal(size=(3, 24)),
}


def test_scores_by_group_are_those_of_the_groups_that_were_scored():
    found = by_group(SCORES)
    assert found["nats_per_sequence"] == pytest.approx(
        group_scores(SCORES["nats_per_sequence"], GROUPS)
    )
    assert found["at_rungs"] == pytest.approx(group_scores(SCORES["at_rungs"], GROUPS[:24]))
    assert set(found) == {"nats_per_sequence", "at_rungs"}
    few = by_group({**SCORES, "groups": GROUPS % 7})
    assert (few["nats_per_sequence"] == SCORES["nats_per_sequence"]).all()
    alone = by_group({**SCORES, "groups": np.arange(60), "at_rungs": np.zeros(0)})
    assert (alone["nats_per_sequence"] == SCORES["nats_per_sequence"]).all()
    assert by_group({}) == {}
    with pytest.raises(KeyError):
        by_group({"nats_per_sequence": np.zeros(3)})


def test_correlations_are_of_the_score_and_of_the_difference():
    shifted = {**SCORES, "nats_per_sequence": SCORES["nats_per_sequence"] - RNG.normal(size=60)}
    found = group_correlations([SCORES, shifted])
    assert found["score"] > 0.2 > found["difference"]
    assert list(group_correlations([SCORES])) == ["score"]


def test_an_interval_is_over_masks_alone_where_the_groups_are_few(tmp_path):
    lml = result(trial(0, tmp_path)).lml
    none = {"se_population": None, "df_population": None}
    few = lml.model_copy(update={**none, "se_per_token": 0.002, "groups": 5})
    assert few.scope == "on these 5 groups only (document)"
    assert lml.scope == ""
    assert lml_half_width(few) == pytest.approx(1.97 * 0.002, rel=0.03)
    assert lml_half_width(lml) == pytest.approx(1.97 * lml.se_per_token, rel=0.03)
    assert math.isnan(lml_half_width(few.model_copy(update={"se_per_token": None})))


def score(nats_per_token: float) -> LMLScore:
    return LMLScore(
        nats_per_sequence=32 * nats_per_token, nats_per_token=nats_per_token, bits_per_byte=None,
        se_population=0.32, se_per_token=0.01, largest_share=0.1, groups_needed=5,
        df_population=399, se_fixed=None, sequences=400, groups=400,
        grouped_by="document", forwards=800,
        effective_sample_size=400.0, plan_hash="plan",
    )  # fmt: skip


def found(tmp_path: Path, home: float, far: float, near: float, gone: float = -3) -> TrialResult:
    changes = {
        "lml": score(home),
        "lml_shift": {"far": score(far), "near": score(near)},
        "lml_missing": (MissingScore(fraction=0.2, kind="block", lml=score(gone)),),
    }
    return result(trial(0, tmp_path)).model_copy(update=changes)


def test_every_condition(tmp_path: Path) -> None:
    scores = scores_by_condition([found(tmp_path, -2.0, -3.0, -2.5)])
    assert [(c.kind, c.domain, c.pattern, score) for c, (score, _) in scores.items()] == [
        ("home", "", "random", -2.0), ("domain", "far", "random", -3.0),
        ("domain", "near", "random", -2.5), ("missing", "", "block", -3.0),
    ]  # fmt: skip
    # 400 sequences: Student's quantile of 399 degrees of freedom.
    assert next(iter(scores.values()))[1] == pytest.approx(0.01 * 1.9659, rel=1e-4)


def test_several_seeds_are_their_mean_with_their_noise(tmp_path: Path) -> None:
    runs = [found(tmp_path, -2.1, -2.8, -2.7), found(tmp_path, -2.2, -3.0, -2.7)]
    score, half = scores_by_condition(runs)[Condition("home")]
    assert score == pytest.approx(-2.15)
    # 2 seeds: Student's quantile of 1 degree of freedom, 12.7.
    assert half == pytest.approx(np.hypot(0.01 * 1.9659, 0.05 * 12.7062), rel=1e-4)


def test_the_worst_domain_has_the_lowest_mean(tmp_path: Path) -> None:
    runs = [found(tmp_path, -2.0, -3.0, -2.5), found(tmp_path, -2.0, -2.0, -2.8)]
    assert worst_domain(runs) == ("near", pytest.approx(-2.65))
    assert worst_domain([result(trial(0, tmp_path))]) is None


def test_the_score_of_a_rule(tmp_path: Path) -> None:
    runs = [found(tmp_path, -2.0, -3.0, -2.5), found(tmp_path, -2.0, -2.0, -2.8)]
    assert score_by_rule(runs, "heldout") is None
    assert score_by_rule(runs, "worst_domain") == pytest.approx(-2.65)
    weighted = (-2.0 * 1 - 2.5 * 0.3) / 1.3
    assert score_by_rule(runs, {"heldout": 1, "far": 0.3}) == pytest.approx(weighted)
    assert score_by_rule(runs, {"heldout": 10, "far": 3}) == pytest.approx(weighted)
    assert score_by_rule(runs, {"heldout": 1, "other": 1}) is None
