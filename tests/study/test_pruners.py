"""Pruners compare trials of one size, and the predictive one keeps to its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import mptune
from mptune.spec.schema import Pruner, Search
from mptune.study.pruners import FreezeThawPruner, make_pruner
from mptune.study.records import JUDGED, JUDGED_BY, PAUSED


def _prunes(study: optuna.Study, size: str, score: float) -> bool:
    """Whether a trial of the size is stopped at half of its training; it ends as it was there."""
    trial = study.ask()
    trial.suggest_categorical("model.size", ["1M", "10M"])
    trial.suggest_float("model.dropout", 0, 1)
    trial.report(score, 500)
    stopped = trial.should_prune()
    study.tell(trial, score)
    return stopped


PRUNERS = {
    "median": optuna.pruners.MedianPruner(n_startup_trials=4),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=50),
    "hyperband": optuna.pruners.HyperbandPruner(min_resource=50, max_resource=100),
}


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_trial_is_not_stopped_because_larger_models_score_higher(kind: Any) -> None:
    pruner = make_pruner(Search(pruner=Pruner(kind=kind, rungs=(0.5,))), 1.0)
    assert isinstance(pruner, type(PRUNERS[kind]))  # TPE asks for Hyperband's brackets
    stopped: dict[tuple[str, str], list[bool]] = {}
    for name, chosen in (("ours", pruner), ("optuna", PRUNERS[kind])):
        study = optuna.create_study(direction="maximize", pruner=chosen)
        sizes = {"1M": -3.0, "10M": -1.0}
        for number in range(40):
            size = "1M" if number % 2 else "10M"
            study.enqueue_trial({"model.size": size})
            _prunes(study, size, sizes[size] - 0.01 * number)
        for number in range(8):
            study.enqueue_trial({"model.size": "1M"})
            better = _prunes(study, "1M", -2.5 + 0.01 * number)
            study.enqueue_trial({"model.size": "1M"})
            worse = _prunes(study, "1M", -9.0)
            stopped.setdefault((name, "better"), []).append(better)
            stopped.setdefault((name, "worse"), []).append(worse)
    assert not any(stopped["ours", "better"])
    assert any(stopped["ours", "worse"])
    assert any(stopped["optuna", "better"])


FINISHED = 10

SLIGHT = 0.74
"""A score at half of the training with a chance of some percent."""


def _opened(
    rng: np.random.Generator, sign: float = 1.0, finished: int = FINISHED, **options: Any
) -> optuna.Study:
    """A study whose finished trials end as at their rung, up to 0.05; the best one at 0.9."""
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    pruner = mptune.PredictivePruner(**options)
    study = optuna.create_study(direction=up if sign > 0 else down, pruner=pruner)
    for number in range(finished):
        score = 0.1 * number
        _begin(study, sign * (score + 0.05 * rng.standard_normal()), f"{number // 2}")
        study.tell(number, sign * (score + 0.05 * rng.standard_normal()))
    return study


def _begin(study: optuna.Study, score: float, point: str = "new", size: str = "1M") -> optuna.Trial:
    study.enqueue_trial({"point": point, "size": size})
    trial = study.ask()
    trial.suggest_categorical("point", ["new", *"0123456789"])
    trial.suggest_categorical("size", ["1M", "10M"])
    trial.report(score, 500)
    return trial


def _decision(study: optuna.Study, score: float, **options: Any) -> dict[str, Any]:
    """The decision about a trial with this score at half of its training; it is left running."""
    trial = _begin(study, score, **options)
    stops = trial.should_prune()
    found: dict[str, Any] = study.trials[trial.number].user_attrs[JUDGED][-1]
    assert stops == (found["decision"] == "pause")
    assert trial.should_prune() == stops, "asking again changes nothing"
    assert len(study.trials[trial.number].user_attrs[JUDGED]) == 1
    return found


def test_a_trial_that_is_far_below_is_paused_and_one_near_the_best_goes_on() -> None:
    study = _opened(np.random.default_rng(0))
    far, near = _decision(study, -0.5), _decision(study, 0.8)
    assert (far["decision"], near["decision"]) == ("pause", "go on")
    assert far["probability"] < 0.01 < 0.1 < near["probability"]
    assert far["threshold"] == pytest.approx(0.25 * 0.05)
    assert (far["progress"], far["finished"]) == (0.5, FINISHED)
    assert far["best"] == max(t.value for t in study.trials if t.value is not None)


def test_minimising_is_maximising_upside_down() -> None:
    up, down = _opened(np.random.default_rng(0)), _opened(np.random.default_rng(0), -1.0)
    for score in (-0.5, 0.3, 0.8):
        one, other = _decision(up, score), _decision(down, -score)
        assert one.pop("best") == -other.pop("best")
        assert one == other


def test_none_is_stopped_before_six_have_finished() -> None:
    assert _decision(_opened(np.random.default_rng(0), finished=5), -9.0)["probability"] is None
    six = _decision(_opened(np.random.default_rng(0), finished=6), -9.0)
    assert (six["finished"], six["decision"]) == (6, "pause")


def test_trials_of_another_size_say_nothing() -> None:
    def size(trial: optuna.trial.FrozenTrial) -> str:
        return str(trial.params["size"])

    study = _opened(np.random.default_rng(0), size=size)
    assert _decision(study, -9.0, size="10M")["finished"] == 0
    assert _decision(study, -9.0)["finished"] == FINISHED


def test_what_paused_trials_use_of_the_error_is_not_used_again() -> None:
    """And trials that run at the same time share what is left."""
    study = _opened(np.random.default_rng(0), error=0.2)
    first = _decision(study, SLIGHT)
    assert first["decision"] == "pause"
    assert first["probability"] > 0.01
    second = _decision(study, SLIGHT)
    assert second["threshold"] == pytest.approx(0.25 * (0.2 - first["probability"]), abs=1e-12)
    running = _begin(study, 0.5)
    third = _decision(study, 9.0)
    left = 4 * third["threshold"] * 2
    assert left == pytest.approx(0.2 - 2 * first["probability"], abs=0.2 * first["probability"])
    study.tell(running, state=TrialState.FAIL)


def test_only_what_had_ended_when_a_trial_was_asked_for_decides() -> None:
    study = _opened(np.random.default_rng(0))
    known = {"below": 8, "beside": [6], "paused": {}}
    trial = _begin(study, -0.5)
    trial.set_user_attr(JUDGED_BY, known)
    trial.should_prune()
    (decision,) = study.trials[trial.number].user_attrs[JUDGED]
    assert decision["finished"] == 7
    assert decision["threshold"] == pytest.approx(0.25 * 0.05 / 2)


def test_noise_of_seeds_keeps_trials_going() -> None:
    """What ended at 0.9 may have been lucky."""
    chances = []
    for spread in (0.0, 0.4):
        study = _opened(np.random.default_rng(0))
        for number, score in ((0, 0.6 - spread), (1, 0.6 + spread)):
            study.tell(_begin(study, 0.6, "9"), score)
            assert number < 2
        chances.append(_decision(study, 0.0)["probability"])
    assert chances[1] > 5 * chances[0]


def test_the_most_likely_paused_trial_goes_on_when_curves_turn_out_to_cross() -> None:
    study, pruner = _opened(np.random.default_rng(0)), mptune.PredictivePruner()
    low, high = (_begin(study, score) for score in (-0.6, -0.4))
    for trial in (low, high):
        assert trial.should_prune()
    assert pruner.to_continue(study) is None
    for point, end in zip("678", (-2.0, -2.5, -3.0), strict=True):
        study.tell(_begin(study, 0.5, point), end)
    found = pruner.to_continue(study)
    assert found is not None
    number, decision = found
    assert number == high.number
    assert decision["decision"] == "continue"
    assert decision["probability"] > 0.05 / 2
    assert pruner.to_continue(study, among=[low.number]) is not None
    assert pruner.to_continue(study, among=[]) is None
    assert mptune.PredictivePruner(error=0.99).to_continue(study) is None


def test_a_rung_that_says_nothing_stops_hardly_any() -> None:
    rng, stopped = np.random.default_rng(0), 0
    for _ in range(6):
        study = optuna.create_study(direction="maximize", pruner=mptune.PredictivePruner())
        for _ in range(24):
            trial = _begin(study, rng.standard_normal(), f"{rng.integers(10)}")
            stopped += trial.should_prune()
            if trial.user_attrs.get(JUDGED, [{}])[-1].get("decision") != "pause":
                study.tell(trial, rng.standard_normal())
    assert stopped <= 3  # a median pruner stops 60


@pytest.mark.parametrize(("left", "decision"), [(1.0, "go on"), (1.3, "pause")])
def test_no_trial_is_paused_for_one_that_could_not_be_trained_to_its_end(
    left: float, decision: str
) -> None:
    """Half of the trial is to come, and three quarters of the better one that is paused."""

    def define(trial: Any) -> dict[str, Any]:
        return {"policy": {"kind": "fixed", "rate": trial.suggest_float("rate", 0.05, 0.95)}}

    sampler = mptune.ExposureSampler(define, startup_trials=0)
    study = optuna.create_study(
        direction="maximize", sampler=sampler, pruner=FreezeThawPruner(sampler)
    )

    def begin(rate: float, **rungs: float) -> optuna.Trial:
        study.enqueue_trial({"rate": rate})
        trial = study.ask()
        define(trial)
        for step, score in rungs.items():
            trial.report(score, int(step[1:]))
        return trial

    for n in range(7):
        rate = 0.1 + 0.12 * n
        score = -2 - abs(rate - 0.5)
        study.tell(begin(rate, _250=score - 0.2, _500=score - 0.1), score)
    paused = begin(0.5, _250=-2.1)
    paused.set_user_attr(JUDGED, [{"decision": "pause", "progress": 0.25, "why": ""}])
    paused.set_user_attr("reason", PAUSED)
    trial = begin(0.95, _250=-2.9, _500=-2.8)
    known = {"below": 100, "beside": [], "paused": {str(paused.number): 0.25}, "left": left}
    trial.set_user_attr(JUDGED_BY, known)
    assert trial.should_prune() == (decision == "pause")
    assert study.trials[trial.number].user_attrs[JUDGED][-1]["decision"] == decision
