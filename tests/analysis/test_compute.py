"""Equivalent compute on curves whose crossing is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mptune.analysis.compute import UNITS, Curves, EquivalentCompute, equivalent_compute, mean_curve
from mptune.analysis.crossed import Array

PROGRESS = (0.2, 0.4, 0.6, 0.8, 1.0)
TOKENS = 32.0


def truth(speed: float, final: float = -60.0) -> Array:
    """A score that is linear in the log of the cost: `speed` times as fast as the baseline."""
    return final + 8 * np.log(np.array(PROGRESS) * speed)


def curves(
    name: str, curve_R: Array, noise: Array | float = 0.0, seeds: int = 3, flops: float = 1.0
) -> Curves:
    z_SRN = np.broadcast_to(curve_R[None, :, None] + noise, (seeds, len(PROGRESS), 64))
    cost_SR = np.tile(np.array(PROGRESS), (seeds, 1))
    costs: Any = {"tokens": 1e6 * cost_SR, "flops": flops * cost_SR, "seconds": 10 * cost_SR}
    return Curves(name, tuple(range(seeds)), z_SRN, costs, PROGRESS, TOKENS)


def read(found: list[EquivalentCompute], arm: str, unit: str = "tokens") -> EquivalentCompute:
    return next(e for e in found if (e.arm, e.unit) == (arm, unit))


def test_a_faster_arm_needs_less_of_everything_it_is_faster_in() -> None:
    arms = [curves("base", truth(1.0)), curves("fast", truth(1 / 0.6), flops=1.5)]
    found = equivalent_compute(arms, "base")
    assert len(found) == 2 * len(UNITS)
    tokens, flops = read(found, "fast"), read(found, "fast", "flops")
    assert tokens.factor == pytest.approx(0.6, rel=1e-6)
    assert flops.factor == pytest.approx(0.9, rel=1e-6)
    assert (tokens.reading, tokens.probability_reached) == ("factor", 1.0)
    assert tokens.level == pytest.approx(-60 / TOKENS)
    assert flops.spent == pytest.approx(1.5)


def test_a_slower_arm_does_not_get_there() -> None:
    found = equivalent_compute([curves("base", truth(1.0)), curves("slow", truth(0.7))], "base")
    slow = read(found, "slow")
    assert (slow.factor, slow.low, slow.high, slow.reading) == (None, 1.0, None, "at least")
    assert slow.probability_reached == 0
    assert read(found, "base").factor == pytest.approx(0.7, rel=1e-6)


def test_before_the_first_rung_is_an_upper_bound() -> None:
    arms = [curves("base", truth(1.0)), curves("fast", truth(10.0))]
    fast = read(equivalent_compute(arms, "base"), "fast")
    assert (fast.factor, fast.low, fast.high, fast.reading) == (None, None, 0.2, "at most")


def test_a_factor_is_stated_only_if_both_ends_of_its_interval_are_finite() -> None:
    rng, seen = np.random.default_rng(3), set()
    for speed in (0.5, 1.0, 1.3, 3.0, 8.0):
        noise = 3 * rng.normal(size=(3, 1, 1))
        arms = [curves("base", truth(1.0)), curves("arm", truth(speed), noise)]
        for one in equivalent_compute(arms, "base", draws=400):
            finite = one.low is not None, one.high is not None
            expected = {(True, True): "factor", (False, True): "at most", (True, False): "at least"}
            assert one.reading == expected.get(finite, "unknown")
            assert (one.factor is not None) == (one.reading == "factor")
            seen.add(one.reading)
    assert len(seen) > 2


def test_only_paired_seeds_and_equal_rungs_count() -> None:
    base = curves("base", truth(1.0))
    other = Curves("other", (7, 8, 9), *[getattr(base, f) for f in list(vars(base))[2:]])
    assert equivalent_compute([base, other], "base") == []
    assert (
        read(equivalent_compute([base, curves("two", truth(2.0), seeds=2)], "base"), "two").seeds
        == 2
    )


def test_the_mean_curve_carries_both_noises() -> None:
    rng = np.random.default_rng(0)
    noise = 0.5 * rng.normal(size=(3, 1, 1)) + rng.normal(size=(1, 1, 64))
    points = mean_curve(curves("arm", truth(1.0), noise))
    assert [p.progress for p in points] == list(PROGRESS)
    assert points[-1].tokens == 1_000_000
    assert points[-1].nats_per_token == pytest.approx((-60 + noise.mean()) / TOKENS)
    assert TOKENS * points[-1].se > np.std(noise.mean((1, 2)), ddof=1) / math.sqrt(3)


def test_the_interval_covers() -> None:
    """Both noises, three seeds: the true factor lies inside as often as the interval says."""
    rng = np.random.default_rng(1)
    normal, replications, hits = rng.normal, 400, 0
    for _ in range(replications):
        made = []
        shared = 3 * normal(size=(1, 1, 64)) + normal(size=(3, 1, 1))
        for name, speed in (("base", 1.0), ("fast", 1.6)):
            own = normal(size=(1, 1, 64)) + 0.5 * normal(size=(3, 1, 1))
            noise = shared + own + 0.2 * normal(size=(3, 5, 1)) + normal(size=(3, 5, 64))
            made.append(curves(name, truth(speed), noise))
        fast = read(equivalent_compute(made, "base", draws=400), "fast")
        low, high = fast.low or 0.0, fast.high if fast.high is not None else math.inf
        hits += low <= 1 / 1.6 <= high
    assert 0.93 <= hits / replications <= 0.985
