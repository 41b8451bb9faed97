"""The faster sampler proposes what Optuna's does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages._rdb import models
from optuna.trial import TrialState

from mptune.paths import RunDirectory
from mptune.study.optuna_private import TPESampler, requeue
from mptune.study.records import MEMORY
from tests import studies

Make = Callable[[int], optuna.samplers.BaseSampler]


def ours(seed: int) -> optuna.samplers.BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)


def optunas(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=5, constant_liar=True, multivariate=True, group=True
    )


def dimensions(trial: optuna.Trial) -> float:
    """Conditional ones, of every kind."""
    value = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    if trial.suggest_categorical("policy", ["fixed", "beta", "uniform"]) == "fixed":
        value -= (trial.suggest_float("rate", 0.05, 0.95) - 0.3) ** 2
    elif trial.number % 2:
        value -= abs(trial.suggest_int("a", 1, 9) - 3) + trial.suggest_float("b", 1, 9, step=0.5)
    return value - trial.suggest_int("width", 16, 256, step=16) / 256


def history(make: Make, trials: int) -> list[tuple[dict[str, object], str]]:
    """What a sampler proposed, beside a running trial, told in every way that there is."""
    study = optuna.create_study(direction="maximize", sampler=make(1000))
    running = study.ask()
    dimensions(running)
    for number in range(trials):
        study.sampler = make(number)
        trial = study.ask()
        value = dimensions(trial)
        trial.report(value, 50)
        if number % 7 == 3:
            trial.set_constraint(MEMORY, 1.0)
        state = {3: TrialState.PRUNED, 5: TrialState.FAIL}.get(number % 7)
        study.tell(trial, None if state else value, state=state)
    return [(t.params, t.state.name) for t in study.trials[1:]]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_proposals_are_those_of_optuna() -> None:
    proposed = history(ours, 40)
    assert proposed == history(optunas, 40)
    assert len({tuple(params) for params, _ in proposed}) == 3


def branches(make: Make) -> list[dict[str, object]]:
    """Proposals where every trial of one branch was pruned."""
    study = optuna.create_study(direction="maximize", sampler=make(0))
    for number in range(30):
        study.sampler = make(number)
        trial = study.ask()
        branch = trial.suggest_categorical("k", ["a", "b"])
        value = trial.suggest_float(f"x{branch}", 0, 1)
        trial.report(value, 50)
        pruned = branch == "b"
        study.tell(trial, None if pruned else value, state=TrialState.PRUNED if pruned else None)
    return [t.params for t in study.trials]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_dimensions_of_which_every_trial_was_pruned_count_too() -> None:
    proposed = branches(ours)
    assert proposed == branches(optunas)
    assert any("xb" in params for params in proposed)


def test_other_seeds_propose_otherwise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert history(ours, 12) != history(lambda n: ours(n + 1), 12)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (models.TrialUserAttributeModel, "key"),
        (models.TrialUserAttributeModel, "value_json"),
        (models.TrialModel, "find_or_raise_by_id"),
        (optuna.storages.RDBStorage, "check_trial_is_updatable"),
        (optuna.samplers.TPESampler, "_get_internal_repr"),
        (optuna.samplers.TPESampler, "_get_params"),
        (optuna.samplers.GPSampler, "_sample_relative_impl"),
        (optuna.search_space.group_decomposed._GroupDecomposedSearchSpace, "calculate"),
        (optuna.search_space.group_decomposed._SearchSpaceGroup, "add_distributions"),
    ],
)
def test_optuna_still_has_the_private_name(owner: Any, name: str) -> None:
    assert hasattr(owner, name), (
        f"Optuna {optuna.__version__} has no {owner.__name__}.{name}: adapt optuna_private.py"
    )


def test_a_running_trial_can_still_be_requeued(run: RunDirectory) -> None:
    study = studies.create(run, None, "demo")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    requeue(study, trial)
    again = study.ask()
    assert (again.number, again.params) == (trial.number, trial.params), (
        f"Optuna {optuna.__version__} no longer runs a requeued trial under its number and "
        "parameters: adapt optuna_private.requeue"
    )


def test_a_database_is_opened_without_reading_optunas_migrations_again(tmp_path, monkeypatch):
    studies.storage(RunDirectory(tmp_path / "first"), None).open()
    monkeypatch.setattr(
        "alembic.script.ScriptDirectory.from_config", lambda _: pytest.fail("they are read again")
    )
    ours = studies.storage(RunDirectory(tmp_path / "second"), None).open()
    (version,) = ours.get_all_versions()[:1]
    assert ours.get_current_version() == ours.get_head_version() == version
