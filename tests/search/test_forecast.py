"""How long trials take, under simulated time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.search.forecast import Predictor, TrialInFlight, Work, forecast_study
from mptune.spec.schema import Resources, Training
from mptune.status import Forecast, Spend
from mptune.trial import Failed, Finished, Progress, Scoring, Started, TrialSpec
from tests import fakes

TOKENS = 1e6
NOWHERE = Path("nowhere")


def trial(number: int = 0, width: int = 64, **changes: object) -> TrialSpec:
    fields = {"training": Training(budget_tokens=TOKENS), **changes}
    return fakes.trial(number, NOWHERE, model={"family": "fake", "width": width}, **fields)


def finished(of: TrialSpec, training_s: float, total_s: float, **cost: float) -> Finished:
    result = fakes.result(of)
    took = {"tokens": int(TOKENS), "training_s": training_s, "total_s": total_s, **cost}
    return Finished(
        number=of.number,
        result=result.model_copy(update={"cost": result.cost.model_copy(update=took)}),
    )


def progress(number: int, share: float, tokens_per_s: float, flops_per_s: float = 0) -> Progress:
    return Progress(
        number=number, step=1, total_steps=10, progress=share, loss=1, mask_rate=0.5,
        learning_rate=1e-3, tokens_per_s=tokens_per_s, flops_per_s=flops_per_s,
    )  # fmt: skip


def started(number: int, resumed_at: int = 0) -> Started:
    return Started(
        number=number, gang="g", pids=(), total_steps=10, parameters=1, resumed_at=resumed_at
    )


def test_nothing_is_known_before_anything_was_measured():
    assert Predictor().seconds(trial()) is None
    assert Predictor().remaining(0, now=5) is None


def test_finished_trials_tell_training_and_what_comes_beside_it():
    predictor = Predictor()
    predictor.observe(trial(0), finished(trial(0), 100, 130), now=0)
    predictor.observe(trial(1), finished(trial(1), 140, 170), now=0)
    assert predictor.seconds(trial(2)) == pytest.approx(120 + 30)


def test_one_that_runs_tells_its_speed_until_one_has_finished():
    predictor = Predictor()
    predictor.observe(trial(0), progress(0, 0.1, tokens_per_s=TOKENS / 200), now=0)
    assert predictor.seconds(trial(1)) == pytest.approx(200)
    predictor.observe(trial(0), finished(trial(0), 100, 110), now=0)
    predictor.observe(trial(1), progress(1, 0.1, tokens_per_s=1), now=0)
    assert predictor.seconds(trial(1)) == pytest.approx(110)


def test_the_first_steps_do_not_count_once_others_are_known_and_those_count_by_their_time():
    predictor = Predictor()
    predictor.observe(trial(0), started(0), now=0)
    for now, share, tokens_per_s in ((1, 0.01, 10.0), (3, 0.04, 3e4), (4, 0.08, 6e4)):
        predictor.observe(trial(0), progress(0, share, tokens_per_s), now=now)
        assert predictor.is_settled(0) == (share == 0.08)
    assert predictor.seconds(trial(1)) == pytest.approx(TOKENS / 4e4)
    predictor.observe(trial(1), progress(1, 0.01, 10.0), now=5)
    assert predictor.seconds(trial(1)) == pytest.approx(TOKENS / 4e4)


def test_rungs_that_are_behind_a_trial_do_not_remain():
    """Of 60 s beside the training 20 are scoring at its end; the rest is spread over it."""
    predictor = Predictor()
    predictor.observe(trial(9), finished(trial(9), 100, 160, scoring_s=20), now=0)
    assert predictor.seconds(trial(0)) == pytest.approx(160)
    assert predictor.seconds_from_first_step(trial(0), done=0.5) == pytest.approx(70 + 20)
    predictor.observe(trial(0), progress(0, 0.9, tokens_per_s=1), now=100)
    assert predictor.remaining(0, now=100) == pytest.approx(14 + 20)


def test_what_a_ledger_counts_begins_with_the_first_step():
    predictor = Predictor()
    took = {"scoring_s": 20, "setting_up_s": 30}
    predictor.observe(trial(9), finished(trial(9), 100, 160, **took), now=0)
    assert predictor.seconds(trial(0)) == pytest.approx(160)
    assert predictor.seconds_from_first_step(trial(0)) == pytest.approx(130)
    assert predictor.seconds_from_first_step(trial(0), done=0.5) == pytest.approx(55 + 20)
    predictor.observe(trial(0), started(0), now=1000)
    assert predictor.remaining(0, now=1000) == pytest.approx(130)


def test_a_trial_that_was_resumed_tells_how_long_it_was_scored():
    """Its total is of the last attempt, shorter than the training of all."""
    predictor = Predictor()
    predictor.observe(trial(0), finished(trial(0), 100, 40, scoring_s=20), now=0)
    assert predictor.seconds(trial(1)) == pytest.approx(100 + 20)


@pytest.mark.parametrize(
    "other", [trial(1, width=128), trial(1, resources=Resources(workers=2))], ids=["model", "gang"]
)
def test_another_model_or_gang_is_another_speed_and_the_slowest_until_it_is_known(other):
    predictor = Predictor()
    predictor.observe(trial(0), finished(trial(0), 100, 100), now=0)
    assert predictor.seconds(other) == 100
    assert not predictor.is_measured(other)
    predictor.observe(other, finished(other, 300, 300), now=0)
    assert predictor.is_measured(other)
    assert (predictor.seconds(trial(2)), predictor.seconds(other)) == (100, 300)
    assert predictor.seconds(trial(3, width=999)) == 300


def test_a_trial_that_was_read_from_a_storage_is_of_the_same_kind():
    predictor, run = Predictor(), trial(0)
    stored = TrialSpec.model_validate_json(run.model_dump_json())
    predictor.add_result(stored, finished(stored, 100, 100).result)
    assert predictor.is_measured(run)


def test_every_kind_of_budget():
    flops, seconds = Training(budget_flops=6e9), Training(budget_seconds=50)
    assert Predictor().seconds(trial(training=seconds)) == 50
    predictor = Predictor()
    predictor.observe(trial(0), finished(trial(0), 10, 15, flops=3e9), now=0)
    assert predictor.seconds(trial(1, training=flops)) == pytest.approx(25)
    assert predictor.seconds(trial(1, training=seconds)) == pytest.approx(55)


def test_what_remains_shrinks_with_time_and_grows_when_overdue():
    predictor = Predictor()
    predictor.observe(trial(9), finished(trial(9), 100, 120, scoring_s=20), now=0)
    predictor.observe(trial(0), started(0, resumed_at=5), now=1000)
    assert predictor.remaining(0, now=1000) == pytest.approx(50 + 20)
    predictor.observe(trial(0), progress(0, 0.75, tokens_per_s=1), now=1020)
    assert predictor.remaining(0, now=1025) == pytest.approx(25 + 20 - 5)
    predictor.observe(trial(0), Scoring(number=0), now=1050)
    assert predictor.remaining(0, now=1050) == pytest.approx(20)
    assert predictor.remaining(0, now=2050) == pytest.approx(100)


def test_a_trial_that_ended_is_forgotten():
    predictor = Predictor()
    predictor.observe(trial(0), started(0), now=0)
    predictor.observe(trial(0), Failed(number=0, reason="error", detail=""), now=1)
    assert predictor.remaining(0, now=1) is None


# --- a whole study -------------------------------------------------------------------------------

PAIR = Resources(workers=2)
FLYING = TrialInFlight(Work(20, 0), PAIR, left_s=15)


def forecast(in_flight: list[TrialInFlight], spend: Spend, **changes: object) -> Forecast:
    known = {"total": 10, "ended": 4, "unrun": 0, "used": Work(200, 0), "speed": 4.0, **changes}
    return forecast_study(in_flight, spend, **known)  # type: ignore[arg-type]


def spent(worker_s: float = 220, **budgets: float) -> Spend:
    return Spend(seconds=100, worker_seconds=worker_s, gpu_hours=0, **budgets)


def test_the_rest_of_a_study_is_as_what_has_ended():
    found = forecast([FLYING], spent())
    # 30 for the one that runs, and five more of 50.
    assert found.worker_seconds == pytest.approx(220 + 30 + 5 * 50)
    assert found.left_s == pytest.approx(280 / 4)
    assert (found.trials, found.limited_by) == (10, None)


def test_before_anything_has_ended_those_that_run_tell():
    found = forecast([FLYING], spent(20), ended=0, used=Work())
    assert found.worker_seconds == pytest.approx(20 + 30 + 9 * 50)
    unknown = forecast([TrialInFlight(Work(), PAIR, None)], spent(0), ended=0, used=Work())
    assert (unknown.worker_seconds, unknown.left_s, unknown.trials) == (None, None, 10)


def test_what_did_not_run_says_nothing_of_what_will():
    found = forecast([FLYING], spent(), total=13, ended=7, unrun=3)
    assert found.worker_seconds == pytest.approx(220 + 30 + 5 * 50)
    refused = forecast([FLYING], spent(20), ended=2, unrun=2, used=Work())
    assert refused.worker_seconds == pytest.approx(20 + 30 + 7 * 50)


def test_a_trial_without_a_prediction_takes_what_a_mean_one_does():
    found = forecast([TrialInFlight(Work(20, 0), PAIR, None)], spent())
    assert found.worker_seconds == pytest.approx(220 + 30 + 5 * 50)


def test_a_trial_that_took_more_than_a_mean_one_has_nothing_left():
    found = forecast([TrialInFlight(Work(80, 0), PAIR, None)], spent())
    assert found.worker_seconds == pytest.approx(220 + 0 + 5 * 50)


@pytest.mark.parametrize(
    ("budget", "limit", "more"),
    [
        ({"budget_worker_seconds": 360}, "budget_worker_seconds", 2),
        ({"budget_worker_seconds": 10}, "budget_worker_seconds", 0),
        ({"budget_worker_seconds": 999}, None, 5),
        ({"budget_seconds": 140}, "budget_seconds", 3),
        ({"budget_seconds": 140, "budget_worker_seconds": 300}, "budget_worker_seconds", 1),
    ],
)
def test_a_budget_ends_a_study_early(budget, limit, more):
    found = forecast([FLYING], spent(**budget))
    assert (found.limited_by, found.trials) == (limit, 5 + more)
    assert found.worker_seconds == pytest.approx(220 + 30 + more * 50)


def test_gpu_hours_are_forecast_and_limited():
    gpus = Resources(workers=2, gpus_per_worker=1)
    seen = Spend(seconds=100, worker_seconds=220, gpu_hours=220 / 3600, budget_gpu_hours=0.1)
    found = forecast([TrialInFlight(Work(20, 20), gpus, 15)], seen, used=Work(200, 200))
    assert (found.limited_by, found.trials) == ("budget_gpu_hours", 7)
    assert found.gpu_hours == pytest.approx((220 + 30 + 2 * 50) / 3600)


def test_a_study_does_not_end_before_its_longest_trial():
    assert forecast([TrialInFlight(Work(), PAIR, 60)], spent(), total=5).left_s == 60
    assert forecast([FLYING], spent(), speed=None).left_s is None
