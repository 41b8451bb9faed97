"""Every use of Optuna that is not part of its public API.

`tests/study/test_optuna_private.py` fails with one sentence per function when a new Optuna changes
one of them. pyproject.toml bounds Optuna to the versions that were tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import optuna
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session, _VersionManager
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, orm

_ATTRIBUTES: Any = models.TrialUserAttributeModel.__table__

_versions: Any = _VersionManager
_read_migrations = _versions._create_alembic_script


@cache
def _migrations() -> Any:
    """Optuna's migration scripts, which it would read up to three times per opened database."""
    manager = object.__new__(_versions)
    manager.url = ""  # the scripts are the same for every database
    return _read_migrations(manager)


_versions._create_alembic_script = lambda _: _migrations()


class Database(optuna.storages.RDBStorage):
    """Optuna's database storage that writes several attributes of a trial in one transaction.

    With `only`, trials come without their other user attributes: Optuna keeps every trial of an
    open study in memory.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any], only: Sequence[str] = ()) -> None:
        super().__init__(url, engine_kwargs)
        if not only:
            return
        table = models.TrialUserAttributeModel
        criteria = orm.with_loader_criteria(table, table.key.in_(only))

        def add(asked: orm.ORMExecuteState) -> None:
            if asked.is_select:
                asked.statement = asked.statement.options(criteria)

        event.listen(self.scoped_session, "do_orm_execute", add)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set user attributes in one transaction; setting them again changes nothing.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
            StorageInternalError: the server cannot be reached, or refuses them.
        """
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attrs.items()
        ]
        before = _ATTRIBUTES.delete().where(_ATTRIBUTES.c.trial_id == trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
            session.execute(before.where(_ATTRIBUTES.c.key.in_(attrs)))
            session.execute(_ATTRIBUTES.insert(), rows)

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        """All user attributes of a trial, also where trials come without them."""
        wanted = _ATTRIBUTES.select().where(_ATTRIBUTES.c.trial_id == trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            return {row.key: json.loads(row.value_json) for row in session.execute(wanted)}


def user_attributes(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> Mapping[str, Any]:
    """All user attributes of a trial, also of a study that is open with some of them only."""
    database = getattr(study._storage, "_backend", None)
    if isinstance(database, Database):
        return database.get_trial_user_attrs(trial._trial_id)
    return trial.user_attrs


def set_attributes(trial: optuna.Trial, **attrs: Any) -> None:
    """Set user attributes of a running trial; in a database, all in one transaction."""
    database = getattr(trial.storage, "_backend", None)
    if isinstance(database, Database):
        database.set_trial_user_attrs(trial._trial_id, attrs)
        trial._cached_frozen_trial.user_attrs.update(attrs)
        return
    for key, value in attrs.items():
        trial.set_user_attr(key, value)


def requeue(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Put a running trial back in the queue, under its number and with its parameters."""
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)


def reopen(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A running trial, as the driver had it that asked for it."""
    return optuna.Trial(study, trial._trial_id)


def set_stored_attribute(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a user attribute of a trial that waits in the queue, or is being asked for."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


class _SomeTrials:
    """A storage whose studies seem to have only the trials that `keep` accepts."""

    def __init__(self, storage: Any, keep: Callable[[FrozenTrial], bool]) -> None:
        self._storage, self._keep = storage, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return [t for t in self._storage.get_all_trials(*args, **options) if self._keep(t)]


def with_trials(study: optuna.Study, keep: Callable[[FrozenTrial], bool]) -> optuna.Study:
    """The study with only the trials that `keep` accepts; what is written goes to the study."""
    storage: Any = _SomeTrials(study._storage, keep)
    return optuna.load_study(
        study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner
    )


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's TPE, multivariate and grouped by which dimensions occur together."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, multivariate=True, group=True)
