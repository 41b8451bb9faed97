"""The stated error of the pruner is how often it stops the best trial."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mptune.analysis.pruning import probability_of_stopping_the_best
from mptune.trial import Trial
from tests.report.conftest import result

RESULT = result("bert 64 × 2, 4 heads", "fixed 15 %")


def trial(number: int, rung: float, final: float | None, size: str = "S") -> Trial:
    """Stopped at half of its training if it has no final score."""
    ended = {"state": "PRUNED", "result": None}
    if final is not None:
        lml = RESULT.lml.model_copy(update={"nats_per_token": final})
        ended = {"state": "COMPLETE", "result": RESULT.model_copy(update={"lml": lml})}
    return Trial.model_validate(
        {"number": number, "size_label": size, "rungs": ((0.5, rung),), **ended}
    )


def study(rng: np.random.Generator, correlation: float) -> tuple[list[Trial], bool]:
    """12 trials under a median pruner, and whether it stopped the one that would end best."""
    rungs = rng.normal(size=12)
    finals = correlation * rungs + math.sqrt(1 - correlation**2) * rng.normal(size=12)
    stopped = [n >= 4 and rungs[n] < np.median(rungs[:n]) for n in range(12)]
    trials = [trial(n, rungs[n], None if stopped[n] else finals[n]) for n in rng.permutation(12)]
    return trials, stopped[int(finals.argmax())]


@pytest.mark.parametrize(("correlation", "tolerance"), [(0.3, 0.03), (0.9, 0.015)])
def test_the_best_is_stopped_as_often_as_stated(correlation: float, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    made = [study(rng, correlation) for _ in range(300)]
    stated = [probability_of_stopping_the_best(trials) for trials, _ in made]
    true = float(np.mean([stopped for _, stopped in made]))
    assert float(np.nanmean(stated)) == pytest.approx(true, abs=tolerance)
    assert true > 0.1 or correlation == 0.9


def test_sizes_are_apart_and_too_few_are_unknown() -> None:
    """A rung says nothing of trials of another size."""
    large = [trial(n, -1 + 0.1 * n, -1 + 0.1 * n) for n in range(6)]
    small = [trial(10 + n, -3 + 0.1 * n, -2 + 0.1 * n, "s") for n in range(6)]
    assert probability_of_stopping_the_best(large) == 0.0
    assert probability_of_stopping_the_best([*large, trial(20, -2.9, None)]) == 0.0
    assert probability_of_stopping_the_best([*large, *small, trial(20, 0.0, None, "s")]) == 1.0
    assert math.isnan(probability_of_stopping_the_best([*large, trial(20, 0.0, None, "s")]))
    assert math.isnan(probability_of_stopping_the_best([*large[:3], trial(20, 0.0, None)]))
