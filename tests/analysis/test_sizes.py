"""Laws over size on simulated runs whose law is known, and how often their intervals cover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mptune.analysis.sizes import SizeLaw, by_size
from mptune.trial import Cost, LearningPoint, LMLScore, Trial, TrialResult
from tests.simulations import repetitions

SIZES, RATES = (1e5, 4e5, 1.6e6), (0.1, 0.15, 0.3, 0.5, 0.7)
N0 = math.exp(np.mean([math.log(N) for N in SIZES]))
LARGE = 1.1e8


def best_rate(N: float, level: float = 1.0) -> float:
    """The law: it falls with size, and a little with the budget."""
    x = -0.6 - 0.25 * math.log(N / N0) - 0.1 * math.log(level)
    return 1 / (1 + math.exp(-x))


def gap(N: float, level: float = 1.0) -> float:
    return 0.05 + 0.02 * math.log(N / N0) + 0.01 * math.log(level)


def logit(r: float) -> float:
    return math.log(r / (1 - r))


def trial(
    policy: dict[str, Any], rate: float, N: float, seed: int, scores: dict[float, float]
) -> Trial:
    """A finished trial with these scores by level, the last one at the end."""
    result = TrialResult.model_construct(
        lml=LMLScore.model_construct(nats_per_token=scores[1.0]),
        cost=Cost.model_construct(parameters=int(N), tokens=1_000_000),
        learning=tuple(
            LearningPoint.model_construct(progress=level, tokens=1e6 * level, nats_per_token=y)
            for level, y in scores.items()
        ),
        mean_mask_rate=rate,
    )
    return Trial.model_construct(state="COMPLETE", policy=policy, seed=seed, result=result)


def fixed(rng: np.random.Generator, sd: float, levels: tuple[float, ...]) -> Iterator[Trial]:
    """Fixed rates at every size; the scores of one run share its noise."""
    for N in SIZES:
        for r in RATES:
            own, scores = sd * rng.normal(), {}
            for level in levels:
                top = -3 + 0.2 * math.log(N) + 0.5 * math.log(level)
                y = top - 0.08 * (logit(r) - logit(best_rate(N, level))) ** 2
                scores[level] = y + own + 0.3 * sd * rng.normal()
            yield trial({"kind": "fixed", "rate": r}, r, N, 0, scores)


def paired(
    rng: np.random.Generator, sd: float, levels: tuple[float, ...], seeds: int = 3
) -> Iterator[Trial]:
    """Fixed 15 % and accumulated at every size and seed."""
    for N in SIZES:
        for seed in range(seeds):
            for kind, rate in (("fixed", 0.15), ("uniform", 0.5)):
                own, scores = sd * rng.normal(), {}
                for level in levels:
                    y = -3 + (gap(N, level) if kind == "uniform" else 0.0)
                    scores[level] = y + own + 0.3 * sd * rng.normal()
                policy = {"kind": kind} if kind == "uniform" else {"kind": kind, "rate": rate}
                yield trial(policy, rate, N, seed, scores)


def size(t: Trial) -> int:
    return t.require_result().cost.parameters


def best_rate_law(trials: list[Trial], draws: int = 500) -> SizeLaw:
    found = by_size(trials, [LARGE], draws=draws)
    assert found is not None
    assert found.best_rate is not None, found.best_rate_missing
    return found.best_rate


def gap_law(trials: list[Trial], draws: int = 500) -> SizeLaw:
    found = by_size(trials, [LARGE], draws=draws)
    assert found is not None
    assert found.gap is not None, found.gap_missing
    return found.gap


def test_the_law_of_the_best_rate_is_found_and_extrapolated() -> None:
    law = best_rate_law(list(fixed(np.random.default_rng(0), 1e-4, (0.25, 0.5, 1.0))))
    _, s, t = law.parameters
    assert (s.value, t.value) == (pytest.approx(-0.25, abs=0.01), pytest.approx(-0.1, abs=0.01))
    assert law.size_matters
    assert "logit r = a + s ln(N / 4e+05) + t ln(B / " in law.form
    assert len(law.curves) == 3
    far = law.extrapolation[0]
    assert far.at.value == pytest.approx(best_rate(LARGE), rel=0.05)
    assert far.beyond == pytest.approx(LARGE / SIZES[-1])
    assert law.points[-1].value in RATES
    assert law.runs == len(SIZES) * len(RATES)


def test_the_law_of_the_gap() -> None:
    law = gap_law(list(paired(np.random.default_rng(0), 1e-5, (1.0,))))
    assert law.of == "accumulated - fixed 15 %"
    assert [p.value for p in law.parameters] == pytest.approx([0.05, 0.02], abs=1e-4)
    assert law.extrapolation[0].at.value == pytest.approx(gap(LARGE), abs=1e-3)
    assert all(
        p.low is not None and p.low <= gap(p.parameters) <= (p.high or 0) for p in law.points
    )


@pytest.mark.simulation
@pytest.mark.parametrize("levels", [(1.0,), (0.25, 0.5, 1.0)])
def test_intervals_cover(levels: tuple[float, ...]) -> None:
    """The named size lies 70 times outside the data; the interval has to say so."""
    rng, replications = np.random.default_rng(len(levels)), repetitions(60, 120)
    rates, gaps = 0, 0
    for _ in range(replications):
        far = best_rate_law(list(fixed(rng, 0.01, levels)), 200).extrapolation[0].at
        rates += far.low <= best_rate(LARGE) <= far.high
        far = gap_law(list(paired(rng, 0.02, levels)), 200).extrapolation[0].at
        gaps += far.low <= gap(LARGE) <= far.high
    assert 0.88 <= rates / replications <= 0.995
    assert 0.88 <= gaps / replications <= 0.995


@pytest.mark.parametrize(
    ("rates", "sizes", "said"),
    [
        ((0.15, 0.3), SIZES, "three rates or more"),
        ((0.1, 0.15), SIZES[:2], "three rates or more"),
    ],
)
def test_too_little_says_what_is_needed(
    rates: tuple[float, ...], sizes: tuple[float, ...], said: str
) -> None:
    all_runs = fixed(np.random.default_rng(0), 0.01, (1.0,))
    found = by_size([t for t in all_runs if t.policy["rate"] in rates and size(t) in sizes])
    assert found is not None
    assert found.best_rate is None
    assert said in found.best_rate_missing


def test_no_top_is_no_law() -> None:
    runs = fixed(np.random.default_rng(0), 1e-4, (1.0,))
    found = by_size([
        trial(t.policy, t.policy["rate"], size(t), 0, {1.0: -t.nats_per_token}) for t in runs
    ])  # fmt: skip
    assert found is not None
    assert "does not fall on both sides" in found.best_rate_missing


def test_one_size_has_no_law() -> None:
    runs = [t for t in fixed(np.random.default_rng(0), 0.01, (1.0,)) if size(t) == SIZES[0]]
    assert by_size(runs) is None
