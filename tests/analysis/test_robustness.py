"""Scores away from home, and the worst domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mptune.analysis.robustness import Condition, scores_by_condition, worst_domain
from mptune.trial import LMLScore, MissingScore, TrialResult
from tests.fakes import result, trial


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
