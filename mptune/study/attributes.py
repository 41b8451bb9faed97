"""What a trial carries in the storage beside its parameters and its value."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.study.storage import Database
from mptune.trial import Failed, LMLScore, TrialResult, TrialSpec

MEMORY = "memory"
"""Optuna's constraint of a trial that did not fit in memory; it is met where the value is <= 0."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def set_attributes(trial: optuna.Trial, **attrs: Any) -> None:
    """Set user attributes of a trial that runs; in a database, all in one transaction."""
    database = getattr(trial.storage, "_backend", None)
    if isinstance(database, Database):
        database.set_trial_user_attrs(trial._trial_id, attrs)
        trial._cached_frozen_trial.user_attrs.update(attrs)
        return
    for key, value in attrs.items():
        trial.set_user_attr(key, value)


def describe(trial: optuna.Trial, spec: TrialSpec) -> None:
    """What is to be run, and as which JSON; why it was held back before is past."""
    past = {key: None for key in ("reason", "detail") if key in trial.user_attrs}
    set_attributes(
        trial,
        **past,
        label=spec.label,
        seed=spec.seed,
        fingerprint=spec.fingerprint(),
        trial_spec=spec.model_dump_json(),
    )


def record_result(trial: optuna.Trial, result: TrialResult) -> None:
    """What a person or a dashboard may want, in a few groups; and the whole result as JSON.

    An attribute is a row: what each of them costs, a study of 10,000 trials pays when it is opened.
    """
    set_attributes(
        trial,
        lml=_scores(result.lml),
        lml_shift={name: shift.nats_per_token for name, shift in result.lml_shift.items()},
        prequential_nats_per_token=result.prequential,
        loss_at_rate={f"{100 * r.rate:g}%": r.loss for r in result.rates},
        masked_accuracy_at_rate={f"{100 * r.rate:g}%": r.accuracy for r in result.rates},
        cost=result.cost.model_dump(),
        versions=result.versions,
        result=result.model_dump_json(),
    )


def _scores(lml: LMLScore) -> dict[str, float | None]:
    tokens = lml.nats_per_sequence / lml.nats_per_token if lml.nats_per_token else 1.0
    return {
        "nats_per_token": lml.nats_per_token,
        "se_nats_per_token": lml.se_population / tokens,
        "nats_per_sequence": lml.nats_per_sequence,
        "bits_per_byte": lml.bits_per_byte,
    }


def percent(progress: float) -> int:
    """Optuna's step of a rung."""
    return max(1, round(100 * progress))


def report_rung(trial: optuna.Trial, value: float, progress: float) -> None:
    """Report at a rung; the step is the progress in percent. A repeated rung changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trial.report(value, percent(progress))


def tell_failure(study: optuna.Study, trial: optuna.Trial, failure: Failed) -> None:
    """A failure, in the state from which samplers learn what can be learned.

    They leave failed trials out. Of one that did not fit in memory they are to learn where there
    is no room: Optuna has that as a violated constraint, of trials that are not failed.
    """
    set_attributes(trial, reason=failure.reason, detail=failure.detail)
    state = TrialState.FAIL
    if failure.reason == "out_of_memory":
        trial.set_constraint(MEMORY, 1.0)
        state = TrialState.PRUNED
    study.tell(trial.number, state=state)


def has_failed(trial: FrozenTrial) -> bool:
    """Whether it failed, also if Optuna's state says otherwise; see `tell_failure`."""
    return trial.state == TrialState.FAIL or trial.constraints.get(MEMORY, 0.0) > 0
