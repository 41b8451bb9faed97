"""Budgets under simulated time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.search import budget
from mptune.search.budget import Allowance, Budget
from mptune.search.forecast import Predictor
from mptune.search.ledger import Ledger, Work
from mptune.spec.schema import Resources
from mptune.trial import Progress, Started, TrialSpec
from tests import fakes

PAIR = Resources(workers=2, gpus_per_worker=1)


def trial(number: int, width: int = 64) -> TrialSpec:
    return fakes.trial(
        number, Path("/nowhere"), model={"family": "fake", "width": width}, resources=PAIR
    )


def begin(known: Allowance, run: TrialSpec, now: float, *, reports: int = 1) -> None:
    """It will go on for 20 s: 40,960 tokens at 2,048 a second, or the half of it at 1,024."""
    started = Started(number=run.number, gang="g", pids=(1,), total_steps=9, parameters=1)
    known.ledger.begin(run.number, now, PAIR)
    known.predictor.observe(run, started, now)
    for share in (0.0, 0.5)[:reports]:
        heard = Progress(
            number=run.number, step=0, total_steps=9, progress=share, loss=1.0, mask_rate=0.5,
            learning_rate=0.1, tokens_per_s=2048.0 * (1 - share),
        )  # fmt: skip
        known.predictor.observe(run, heard, now)


def allowance(worker_s: float, used: float = 0.0) -> Allowance:
    return Allowance(Budget(worker_s), Predictor(), Ledger(Work(used), most=Work(20, 10)))


def test_a_trial_starts_if_it_fits_in_what_those_in_flight_leave() -> None:
    known = allowance(180, used=100)
    begin(known, trial(0), now=0)  # takes 40
    assert known.lacking(trial(1), [trial(0)], 5) is None
    assert known.lacking(trial(2), [trial(0), trial(1)], 5) == (
        "forecast to take 40 of search.budget_worker_seconds, 0 left"
    )


def test_what_was_never_measured_is_forecast_to_take_as_long_as_the_longest() -> None:
    assert allowance(20).lacking(trial(0), [], 0) is None
    assert allowance(19).lacking(trial(0), [], 0) == (
        "forecast to take 20 of search.budget_worker_seconds, 19 left"
    )


def test_of_one_that_goes_on_only_the_rest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "trained_share", lambda run: 0.75 if run.number else 0.0)
    known = allowance(70)
    begin(known, trial(9), now=0)
    assert known.lacking(trial(1), [], 0) is None
    assert known.lacking(trial(1), [trial(0), trial(2)], 0) is None
    assert known.lacking(trial(1), [trial(0), trial(2), trial(3)], 0) is None
    assert known.lacking(trial(0), [trial(1), trial(2), trial(3), trial(4)], 0) is not None


def test_of_one_that_goes_on_unmeasured_the_rest_of_the_longest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "trained_share", lambda run: 0.75)
    assert allowance(5).lacking(trial(0), [], 0) is None
    assert allowance(4).lacking(trial(0), [], 0) == (
        "forecast to take 5 of search.budget_worker_seconds, 4 left"
    )


def stopped(known: Allowance, flying: list[TrialSpec], now: float) -> dict[int, str]:
    return {run.number: why for run, why in known.excess(flying, now)}


def test_a_running_trial_that_turns_out_not_to_fit_is_stopped() -> None:
    known = allowance(30)
    begin(known, trial(0), now=0, reports=2)
    assert stopped(known, [trial(0)], 1) == {
        0: "forecast to take 34.2 of search.budget_worker_seconds, 28 left"
    }


def test_as_few_as_needed_are_stopped_and_those_that_have_most_to_go() -> None:
    known = allowance(100)
    for number, began in ((0, 0), (1, 8), (2, 4)):
        begin(known, trial(number), now=began, reports=2)
    # At 10 s they have used 20 + 4 + 12, and would take 20, 36 and 28 yet.
    assert list(stopped(known, [trial(0), trial(1), trial(2)], 10)) == [1]


@pytest.mark.parametrize(("worker_s", "reports"), [(30, 1), (30, 0), (39, 2)])
def test_none_is_stopped_for_an_early_guess_or_a_close_one(worker_s: float, reports: int) -> None:
    known = allowance(worker_s)
    begin(known, trial(0), now=0, reports=reports)
    assert stopped(known, [trial(0)], 1) == {}


def test_all_are_stopped_just_before_a_budget_is_spent() -> None:
    known = allowance(30)
    begin(known, trial(0), now=0, reports=0)
    waiting = trial(1)
    assert stopped(known, [trial(0), waiting], 13.9) == {}
    why = "28 of 30 used of search.budget_worker_seconds"
    assert stopped(known, [trial(0), waiting], 14.0) == {0: why, 1: why}


def test_without_a_budget_nothing_is_stopped_or_held() -> None:
    known = Allowance()
    begin(known, trial(0), now=0, reports=2)
    assert stopped(known, [trial(0)], 1e6) == {}
    assert known.lacking(trial(1), [trial(0)], 1e6) is None


@pytest.mark.parametrize(
    ("limits", "lacking"),
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
        (Budget(wall_s=1), None),
    ],
)
def test_a_trial_fits_in_what_is_left_or_it_is_said_what_lacks(
    limits: Budget, lacking: str | None
) -> None:
    assert limits.lacks(Work(100, 50), Work(40, 20)) == lacking


def test_a_budget_is_reached_once_nothing_is_left() -> None:
    assert Budget().reached(Work(1e9, 1e9, 1e9)) is None
    assert Budget(worker_s=100).reached(Work(99, 0)) is None
    spent = "100 of 100 used of search.budget_worker_seconds"
    assert Budget(worker_s=100).reached(Work(100, 0)) == spent
    hours = "1 of 1 used of search.budget_gpu_hours"
    assert Budget(worker_s=1e9, gpu_hours=1).reached(Work(0, 3600)) == hours
    assert Budget(wall_s=5).reached(Work(wall_s=5)) == "5 of 5 used of search.budget_seconds"
    assert Budget(worker_s=0).reached(Work()) == "0 of 0 used of search.budget_worker_seconds"


def test_the_nearest_limit_is_the_one_of_which_least_is_left() -> None:
    both = Budget(worker_s=100, gpu_hours=1)
    assert both.nearest(Work(60, 1800)) == "60 of 100 used of search.budget_worker_seconds"
    assert both.nearest(Work(60, 2880)) == "0.8 of 1 used of search.budget_gpu_hours"
