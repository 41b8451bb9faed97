"""Samplers learn what does not fit in memory, and pruners compare trials of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mptune.spec.schema import Pruner, Sampler, Search
from mptune.study.records import tell_failure
from mptune.study.samplers import make_pruner, make_sampler
from mptune.trial import Failed


def _beyond(kind: Any, trials: int, tell: Callable[..., None]) -> int:
    """How many of the last half do not fit in memory: wider is better, and above .5 is too wide."""
    search, beyond = Search(sampler=Sampler(kind=kind, startup_trials=6)), []
    opened = optuna.create_study(direction="maximize")
    for number in range(trials):
        opened.sampler = make_sampler(search, number)
        trial = opened.ask()
        width, rate = trial.suggest_float("width", 0, 1), trial.suggest_float("rate", 0, 1)
        beyond.append(width > 0.5)
        if beyond[-1]:
            failure = Failed(number=number, reason="out_of_memory", detail="no room")
            tell(opened, trial, failure)
        else:
            opened.tell(number, width - (rate - 0.3) ** 2)
    return sum(beyond[trials // 2 :])


def _as_failed(opened: optuna.Study, trial: optuna.Trial, failure: Failed) -> None:
    opened.tell(trial.number, state=TrialState.FAIL)


@pytest.mark.parametrize(
    ("kind", "trials"), [("tpe", 40), pytest.param("gp", 16, marks=pytest.mark.nightly)]
)
def test_samplers_learn_what_does_not_fit_in_memory(kind: str, trials: int) -> None:
    """What is told as failed they leave out, and ask for widths without end that do not fit."""
    assert _beyond(kind, trials, tell_failure) <= trials // 4
    assert _beyond("tpe", 40, _as_failed) == 20


def _prunes(study: optuna.Study, size: str, score: float) -> bool:
    """Whether a trial of the size is stopped at half of its training; it ends as it was there."""
    trial = study.ask()
    trial.suggest_categorical("model.size", ["1M", "10M"])
    trial.suggest_float("model.dropout", 0, 1)
    trial.report(score, 50)
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
    pruner = make_pruner(Pruner(kind=kind, rungs=(0.5,)))
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
