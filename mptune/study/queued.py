"""What waits in a study to be run: arms, seeds, and what a dead driver left."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.paths import RunDirectory
from mptune.study.attributes import ENDED
from mptune.study.storage import attributes_of, compare_name, existing, open_storage
from mptune.trial import TrialSpec

COMPARE_SEED, CONFIRM_SEED = 1_000_000, 2_000_000
"""First training seed of a comparison and of a confirmation: apart from the search's, so that
nothing is chosen twice."""


def ended(study: optuna.Study) -> int:
    """How many trials have ended, in whatever state."""
    return len(study.get_trials(deepcopy=False, states=ENDED))


def set_base(study: optuna.Study, params: Mapping[str, Any]) -> None:
    """Remember the point that a comparison's arms change: it does not move with later trials."""
    study.set_user_attr("base", dict(params))


def enqueue_arms(study: optuna.Study, arms: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Queue (arm name, parameters) in order; those that are queued already are not repeated."""
    done = sum("arm" in t.user_attrs for t in study.get_trials(deepcopy=False))
    for name, params in arms[done:]:
        study.enqueue_trial(dict(params), user_attrs={"arm": name})


@dataclass(frozen=True)
class Run:
    """One run to be made: what of, with which seed, and the tree of its concrete spec.

    It is queued with its tree, so that whoever resumes need not know the arms it was queued for.
    """

    arm: str
    key: str
    seed: int
    tree: Mapping[str, Any]


def run_key(spec: TrialSpec) -> str:
    """What all seeds of an arm have in common, whatever the arm is called."""
    return spec.run_key()


def enqueue_runs(study: optuna.Study, runs: Sequence[Run]) -> int:
    """Queue the runs that are not there yet; returns the study's trials."""
    known = [_run_of(study, t) for t in study.get_trials(deepcopy=False)]
    new = [run for run in runs if (run.key, run.seed) not in known]
    for run in new:
        attrs = {"arm": run.arm, "run_key": run.key, "tree": dict(run.tree)}
        study.enqueue_trial({"seed": run.seed}, user_attrs=attrs)
    return len(known) + len(new)


def _run_of(study: optuna.Study, trial: FrozenTrial) -> tuple[str | None, int | None]:
    """(run key, number of the seed) of a trial, ended, running or waiting."""
    attrs = attributes_of(study, trial)
    spec = attrs.get("trial_spec")
    key = run_key(TrialSpec.model_validate_json(spec)) if spec else attrs.get("run_key")
    fixed = trial.system_attrs.get("fixed_params", {})
    return key, trial.params.get("seed", fixed.get("seed"))


def ask_comparison(study: optuna.Study, asked: Mapping[str, Any]) -> None:
    """Remember what was compared last, as JSON: it is what the report shows."""
    study.set_user_attr("comparison", dict(asked))


def asked_comparison(run: RunDirectory, url: str | None, name: str) -> dict[str, Any] | None:
    """What `ask_comparison` remembered of the comparison of a search, or None."""
    study = existing(run, url, compare_name(name))
    return study.user_attrs.get("comparison") if study else None


def requeue_running(study: optuna.Study, besides: Container[int] = ()) -> list[int]:
    """Put the trials of a dead driver back in the queue, under their numbers and parameters."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    running = [trial for trial in found if trial.number not in besides]
    for trial in running:
        requeue_trial(study, trial._trial_id)
    return [t.number for t in running]


def requeue(run: RunDirectory, url: str | None, name: str) -> list[int]:
    """`requeue_running` of a study by its name, for `mptune fsck`."""
    return requeue_running(optuna.load_study(study_name=name, storage=open_storage(run, url)))


def requeue_trial(study: optuna.Study, trial_id: int) -> None:
    """Back in the queue, with what it was asked with."""
    study._storage.set_trial_state_values(trial_id, state=TrialState.WAITING)


def explain_waiting(study: optuna.Study, why: str) -> None:
    """Say of the trials that wait why the budgets let none start, if nothing is said of them."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if trial.user_attrs.get("reason") is None:
            for key, value in (("reason", "budget"), ("detail", why)):
                study._storage.set_trial_user_attr(trial._trial_id, key, value)
