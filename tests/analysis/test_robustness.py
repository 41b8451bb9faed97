"""Scores away from home, and the worst domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mptune.analysis.robustness import Robustness, robustness, worst_domain
from mptune.trial import LMLScore, MissingScore, Trial, TrialResult
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


def finished(number: int, result: TrialResult) -> Trial:
    return Trial(number=number, state="COMPLETE", result=result)


def made(tmp_path: Path) -> Robustness:
    a, b = found(tmp_path, -2.0, -3.0, -2.5), found(tmp_path, -2.1, -2.8, -2.7)
    again = found(tmp_path, -2.2, -3.0, -2.7)
    trials = [finished(3, a), finished(5, b)]
    arms = {"b": [finished(0, b), finished(1, again)]}
    report = robustness(trials, arms, by_worst=False)
    assert report is not None
    return report


def test_every_condition_of_every_row(tmp_path: Path) -> None:
    report = made(tmp_path)
    assert [c.name for c in report.conditions] == ["home", "far", "near", "20 % missing, block"]
    assert [s.nats_per_token for s in report.rows[0].scores] == [-2.0, -3.0, -2.5, -3.0]
    assert report.rows[0].worst_domain == "far"
    assert report.best_at_worst == 5


def test_an_arm_is_the_mean_over_seeds_with_their_noise(tmp_path: Path) -> None:
    alone, arm = made(tmp_path).rows[1:]
    assert arm.scores[0].nats_per_token == pytest.approx(-2.15)
    # 400 sequences: Student's quantile of 399 degrees of freedom; 2 seeds: of 1, 12.7.
    assert alone.scores[0].half_width == pytest.approx(0.01 * 1.9659, rel=1e-4)
    assert arm.scores[0].half_width == pytest.approx(
        np.hypot(0.01 * 1.9659, 0.05 * 12.7062), rel=1e-4
    )


def test_home_alone_is_no_report(tmp_path: Path) -> None:
    home = result(trial(0, tmp_path))
    assert robustness([finished(0, home)], {}, by_worst=False) is None
    assert worst_domain([home]) is None
