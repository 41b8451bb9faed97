"""Moderated variances: exact limits, and calibration on simulated arms."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import moderate, out_of_play


def test_many_arms_that_are_alike_share_their_variance() -> None:
    rng = np.random.default_rng(0)
    found = moderate(4 * rng.chisquare(2, 200) / 2, np.full(200, 2))
    assert found.variance_A == pytest.approx(np.full(200, 4.0), rel=0.5)
    assert np.ptp(np.log(found.variance_A)) < 1
    drawn_ZA = found.draw(4000, rng)
    assert 1 / (1 / drawn_ZA).mean(0) == pytest.approx(found.variance_A, rel=0.1)
    assert np.log(drawn_ZA).std(0).max() < 0.5  # chi² with 2 degrees alone: 1.28


def test_an_arm_with_many_seeds_keeps_its_own_variance() -> None:
    found = moderate(np.array([1.0, 60.0]), np.array([400, 400]))
    assert found.variance_A == pytest.approx([1.0, 60.0], rel=0.05)
    spread_A = np.log(found.draw(4000, np.random.default_rng(0))).std(0)
    assert spread_A == pytest.approx(np.full(2, (2 / 400) ** 0.5), rel=0.1)


def test_the_unit_does_not_matter_and_the_order_neither() -> None:
    s2, df, x = np.array([1.0, 3.0, 0.2]), np.array([2, 1, 3]), np.array([0.9, 0.1, 0.0])
    found, scaled = moderate(s2, df, x), moderate(100 * s2[::-1], df[::-1], x[::-1])
    assert scaled.variance_A[::-1] / 100 == pytest.approx(found.variance_A)


def test_policies_that_leave_counts_out_are_noisier() -> None:
    rng, x = np.random.default_rng(1), np.repeat([0.0, 1.0], 17)
    degrees = np.full(34, 2)
    degrees[[0, -1]] = 0  # nothing is known of these two but their policy
    found = moderate(60**x * rng.chisquare(2, 34) / 2, degrees, x)
    assert 20 < found.variance_A[-1] / found.variance_A[0] < 180


@pytest.mark.parametrize("ratio", [1.0, 60.0])
@pytest.mark.parametrize("arms", [2, 4, 12])
def test_intervals_from_moderated_variances_cover(arms: int, ratio: float) -> None:
    """Means of 3 seeds; half of the arms are noisier, and the covariate says which."""
    rng, covered = np.random.default_rng(arms), []
    x: Array = np.arange(arms) % 2.0
    variance_A = ratio**x
    for _ in range(1200 // arms):
        found = moderate(variance_A * rng.chisquare(2, arms) / 2, np.full(arms, 2), x)
        error_A = np.sqrt(variance_A / 3) * rng.normal(size=arms)
        drawn_ZA = np.sqrt(found.draw(400, rng) / 3) * rng.normal(size=(400, arms))
        covered.append(np.abs(error_A) < np.quantile(np.abs(drawn_ZA), 0.95, axis=0))
    assert 0.92 < np.mean(covered) < 0.985


def test_an_arm_that_is_unlike_the_others_keeps_its_own_variance() -> None:
    s2, df, level = np.full(20, 1.0), np.full(20, 2), np.zeros(20)
    level[0] = 0.01
    odd, usual = moderate(np.r_[30.0, s2[1:]], df, None, level), moderate(s2, df, None, level)
    assert odd.variance_A[0] == pytest.approx(30.0)
    assert odd.variance_A[1:] == pytest.approx(usual.variance_A[1:], rel=0.05)
    assert usual.variance_A[0] == usual.variance_A[1]
    assert moderate(np.r_[30.0, s2[1:]], df).variance_A[0] < 15
    quiet = moderate(np.r_[1e-3, s2[1:]], df, None, level).variance_A[0]
    assert quiet > 0.2  # only a variance that is too large is taken for its own
    draws_Z = odd.draw(20_000, np.random.default_rng(0))[:, 0]
    assert np.mean(2 * 30.0 / draws_Z) == pytest.approx(2, rel=0.05)  # chi² with its 2 degrees


def test_the_level_of_the_outlier_test() -> None:
    """Of arms that are alike, as many keep their own variance; fewer, as d0 is uncertain."""
    rng, levels = np.random.default_rng(0), np.r_[0.2, 0.01, np.zeros(30)]
    s2_RA = rng.chisquare(2, (800, 32)) / 2
    odd_RA = [moderate(s2, np.full(32, 2), None, levels).df_GA[0] == 2 for s2 in s2_RA]
    shares = np.mean(odd_RA, axis=0)
    assert 0.15 < shares[0] < 0.25
    assert shares[1] < 0.02
    assert not shares[2:].any()


def test_no_variance_is_made_up() -> None:
    for s2, df in (([1.0, 2.0], [0, 0]), ([0.0, 0.0], [1, 1])):
        with pytest.raises(ValueError, match="no variance is known"):
            moderate(np.array(s2), np.array(df))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"kind": "uniform"}, 0.0),
        ({"kind": "fixed", "rate": 0.15}, 1 - 1 / 64),
        ({"kind": "uniform", "low": 0.5}, 0.5),
        ({"kind": "of another installation"}, 0.5),
    ],
)
def test_counts_out_of_play(policy: dict[str, object], expected: float) -> None:
    assert out_of_play(policy, 64) == pytest.approx(expected, abs=0.02)


def test_a_long_sequence_costs_no_more_than_a_short_one() -> None:
    policy = {"kind": "fixed", "rate": 0.15}
    assert out_of_play(policy, 10**9) == out_of_play(policy, 512)
