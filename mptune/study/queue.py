"""The queue of a study: arms and seeds to run, and running trials of a driver that has ended."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.study.optuna_private import reopen, requeue, set_stored_attribute, user_attributes
from mptune.study.records import ENDED, is_paused, used_share
from mptune.trial import TrialSpec


@dataclass(frozen=True)
class PlannedRun:
    """One training run that a confirmation, a ladder or a comparison asks for: an arm with a seed.

    The whole concrete spec is stored with the queued trial, so a resumed driver can train it even
    if the arm is no longer in the spec that the driver was started with.

    Attributes:
        arm: the arm's name.
        key: hash that all seeds of the arm share, see `TrialSpec.run_key`.
        seed: number of the seed, from 0.
        tree: the concrete spec, as plain YAML values.
        repeats: in a confirmation, the number of the search's trial.
    """

    arm: str
    key: str
    seed: int
    tree: Mapping[str, Any]
    repeats: int | None = None


def ended(study: optuna.Study) -> int:
    """Number of ended trials: complete, pruned or failed."""
    return len(study.get_trials(deepcopy=False, states=ENDED))


def trainings_used(study: optuna.Study) -> float:
    """How many of `search.trials` the ended and paused trials used."""
    trials = study.get_trials(deepcopy=False)
    return round(sum(used_share(t) for t in trials if t.state in ENDED or is_paused(t)), 4)


def is_full(study: optuna.Study, total: int) -> bool:
    """Whether no trial may begin or go on within `total` trainings."""
    paused = (used_share(t) for t in study.get_trials(deepcopy=False) if is_paused(t))
    needed = 1 - max(paused, default=0.0)
    return trainings_used(study) + needed > total + 1e-6


def is_drained(study: optuna.Study) -> bool:
    """Whether no trial runs or waits."""
    return not study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))


def enqueue_arms(study: optuna.Study, arms: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Queue (arm name, parameters) in order; those that are in the study already are skipped."""
    done = sum("arm" in t.user_attrs for t in study.get_trials(deepcopy=False))
    for name, params in arms[done:]:
        study.enqueue_trial(dict(params), user_attrs={"arm": name})


def enqueue_runs(study: optuna.Study, runs: Sequence[PlannedRun]) -> int:
    """Queue the runs that are not in the study yet; returns the study's number of trials."""
    known = [_run_of(study, t) for t in study.get_trials(deepcopy=False)]
    new = [run for run in runs if (run.key, run.seed) not in known]
    for run in new:
        attrs: dict[str, Any] = {"arm": run.arm, "run_key": run.key, "tree": dict(run.tree)}
        if run.repeats is not None:
            attrs["repeats"] = run.repeats
        study.enqueue_trial({"seed": run.seed}, user_attrs=attrs)
    return len(known) + len(new)


def _run_of(study: optuna.Study, trial: FrozenTrial) -> tuple[str | None, int | None]:
    """(Run key, number of the seed) of a trial in any state."""
    attrs = user_attributes(study, trial)
    spec = attrs.get("trial_spec")
    key = TrialSpec.model_validate_json(spec).run_key() if spec else attrs.get("run_key")
    fixed = trial.system_attrs.get("fixed_params", {})
    return key, trial.params.get("seed", fixed.get("seed"))


def requeue_running(study: optuna.Study, besides: Container[int] = ()) -> list[int]:
    """Queue the trials that ran, but not paused ones, when their driver ended: their numbers."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    running = [t for t in found if t.number not in besides and not is_paused(t)]
    for trial in running:
        requeue(study, trial)
    return [t.number for t in running]


def paused_trials(study: optuna.Study) -> list[optuna.Trial]:
    """The paused trials, as an earlier driver had them."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [reopen(study, trial) for trial in found if is_paused(trial)]


def explain_waiting(study: optuna.Study, why: str) -> None:
    """Store `why` as the reason of every waiting trial without one: the budgets are used up."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if trial.user_attrs.get("reason") is None:
            set_stored_attribute(study, trial, "reason", "budget")
            set_stored_attribute(study, trial, "detail", why)
