"""The stated error of the pruner is how often it stops the best trial."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mptune.analysis.pruning import Contest, Curve, probability_of_stopping_the_best
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


@pytest.mark.parametrize(("correlation", "seed_sd"), [(0.5, 0.3), (0.9, 0.3), (0.8, 1.0)])
def test_a_policy_is_near_the_best_as_often_as_stated(correlation: float, seed_sd: float) -> None:
    """Scores are normal; four of ten policies have two seeds, of which the chance is not told."""
    rng = np.random.default_rng(2)
    stated, near = [], []
    for _ in range(250):
        score_P = rng.normal(size=11)
        policy_N = np.concatenate([np.arange(10), np.arange(4), [10]])
        final_N = score_P[policy_N] + seed_sd * rng.normal(size=15)
        sd = math.hypot(1, seed_sd)
        noise_N = sd * math.sqrt(1 - correlation**2) * rng.normal(size=15)
        rung_N = correlation * final_N + noise_N
        *finished, last = [
            Curve(policy, {50: rung}, final)
            for policy, rung, final in zip(policy_N.tolist(), rung_N, final_N, strict=True)
        ]
        contest = Contest.of(finished, margin=0.1)
        chance_ZR = contest.chances(50, np.array([last.rungs[50]]))
        stated.append(chance_ZR.mean())
        near.append(score_P[10] > score_P[:10].max() - contest.delta)
    # The standard error of the share is 0.02 to 0.03.
    assert float(np.mean(stated)) == pytest.approx(float(np.mean(near)), abs=0.07)
    low_N = np.array(stated) < 0.05
    assert float(np.mean(np.array(near)[low_N])) <= 0.06


def test_differences_below_the_margin_and_between_seeds_do_not_matter() -> None:
    finals = (0.0, 0.2, 3.0, 3.2, 1.0, 1.2, 2.0, 2.2)  # two seeds of each point; SD 0.2 / sqrt(2)
    finished = [Curve(n // 2, {50: (-1) ** n * n}, final) for n, final in enumerate(finals)]
    assert Contest.of(finished, 0.05).delta == pytest.approx(0.1)
    assert Contest.of(finished, 0.4).delta == 0.4
