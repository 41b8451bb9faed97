"""TPE learns what does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from mptune.spec.schema import Sampler, Search
from mptune.study.records import tell_failure
from mptune.study.samplers import make_sampler
from mptune.trial import Failed


def _beyond(trials: int, tell: Callable[..., None]) -> int:
    """How many of the last half do not fit in memory: wider is better, and above .5 is too wide."""
    search, beyond = Search(sampler=Sampler(kind="tpe", startup_trials=6)), []
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


def test_the_sampler_learns_what_does_not_fit_in_memory() -> None:
    """What is told as failed it leaves out, and asks for widths without end that do not fit."""
    assert _beyond(40, tell_failure) <= 10
    assert _beyond(40, _as_failed) == 20
