"""Budgets under simulated time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.forecast import Predictor, Work
from mptune.ledger import Ledger
from mptune.spec import Resources
from mptune.study.budget import Budget, Forecaster
from mptune.trial import Progress, Started, TrialSpec
from tests import fakes

PAIR = Resources(workers=2, gpus_per_worker=0.5)


def trial(number: int, width: int = 64) -> TrialSpec:
    return fakes.trial(
        number, Path("/nowhere"), model={"family": "fake", "width": width}, resources=PAIR
    )


def begin(known: Forecaster, run: TrialSpec, now: float) -> None:
    """It will take 20 s: 40,960 tokens at 2,048 a second."""
    started = Started(number=run.number, gang="g", pids=(1,), total_steps=9, parameters=1)
    known.ledger.begin(run.number, now, PAIR)
    known.predictor.observe(run, started, now)
    heard = Progress(
        number=run.number, step=0, total_steps=9, progress=0.0, loss=1.0, mask_rate=0.5,
        learning_rate=0.1, tokens_per_s=2048.0,
    )  # fmt: skip
    known.predictor.observe(run, heard, now)


def test_a_running_trial_counts_with_what_it_used_and_what_is_left_of_it() -> None:
    known = Forecaster(Predictor(), Ledger(worker_s=100, gpu_s=50))
    begin(known, trial(0), now=0)
    assert known.used(5) == Work(110, 55)
    assert known.promised([trial(0)], 5) == Work(140, 70)
    assert known.promised([trial(0), trial(1)], 5) == Work(180, 90)
    assert known.whole(trial(1)) == Work(40, 20)


def test_what_was_never_measured_is_forecast_to_take_as_long_as_the_longest() -> None:
    known = Forecaster(Predictor(), Ledger(worker_s=60, most_worker_s=20, most_gpu_s=10))
    assert known.whole(trial(0)) == Work(20, 10)
    assert Forecaster(Predictor(), Ledger()).whole(trial(0)) == Work()


@pytest.mark.parametrize(
    ("budget", "lacking"),
    [
        (Budget(), None),
        (Budget(worker_s=140), None),
        (Budget(worker_s=139), "forecast to take 40 of search.budget_worker_seconds, 39 left"),
        (Budget(worker_s=90), "forecast to take 40 of search.budget_worker_seconds, 0 left"),
        (Budget(gpu_hours=70 / 3600), None),
        (
            Budget(gpu_hours=0.0175),
            "forecast to take 0.005556 of search.budget_gpu_hours, 0.003611 left",
        ),
    ],
)
def test_a_trial_fits_in_what_is_left_or_it_is_said_what_lacks(
    budget: Budget, lacking: str | None
) -> None:
    assert budget.lacks(Work(100, 50), Work(40, 20)) == lacking


def test_a_budget_is_spent_once_nothing_is_left() -> None:
    assert not Budget().is_spent(Work(1e9, 1e9))
    assert not Budget(worker_s=100).is_spent(Work(99, 0))
    assert Budget(worker_s=100).is_spent(Work(100, 0))
    assert Budget(worker_s=1e9, gpu_hours=1).is_spent(Work(0, 3600))
