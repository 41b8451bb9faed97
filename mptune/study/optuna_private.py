"""Every use of Optuna that is not part of its public API.

`tests/study/test_optuna_private.py` fails with one sentence per function when a new Optuna changes
one of them. pyproject.toml bounds Optuna to the versions that were tested.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import optuna
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session, _VersionManager
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, orm

_SHOWN: Any = models.TrialUserAttributeModel.__table__
_HIDDEN: Any = models.TrialSystemAttributeModel.__table__
_OF_STUDY: Any = models.StudySystemAttributeModel.__table__

HIDDEN = ("result", "trial_spec")
"""Attributes of a trial that Optuna has among its own: dashboards show all others, and each of
these is a line of thousands of characters."""

NOTE_LENGTH = 2045
"""Characters of a note that optuna-dashboard stores in one attribute."""

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
        shown, hidden = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
        criteria = (
            orm.with_loader_criteria(shown, shown.key.in_(only)),
            orm.with_loader_criteria(hidden, hidden.key.not_in(HIDDEN)),
        )

        def add(asked: orm.ORMExecuteState) -> None:
            if asked.is_select:
                asked.statement = asked.statement.options(*criteria)

        event.listen(self.scoped_session, "do_orm_execute", add)

    def set_trial_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set attributes in one transaction; setting them again changes nothing.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
            StorageInternalError: the server cannot be reached, or refuses them.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
            for table in (_SHOWN, _HIDDEN):
                rows = [
                    {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in attrs.items()
                    if (key in HIDDEN) == (table is _HIDDEN)
                ]
                of_trial = table.c.trial_id == trial_id
                session.execute(table.delete().where(of_trial, table.c.key.in_(attrs)))
                if rows:
                    session.execute(table.insert(), rows)

    def get_trial_attrs(self, trial_id: int) -> dict[str, Any]:
        """All attributes of a trial, also where trials come without them."""
        tables = [table.select().where(table.c.trial_id == trial_id) for table in (_SHOWN, _HIDDEN)]
        return self._values(*tables)

    def get_study_attrs(self, study_id: int, keys: Sequence[str]) -> dict[str, Any]:
        """Some of Optuna's own attributes of a study; it has two for each note of a trial."""
        of_study = _OF_STUDY.c.study_id == study_id
        return self._values(_OF_STUDY.select().where(of_study, _OF_STUDY.c.key.in_(keys)))

    def _values(self, *selects: Any) -> dict[str, Any]:
        with _create_scoped_session(self.scoped_session) as session:
            rows = [row for select in selects for row in session.execute(select)]
        return {row.key: json.loads(row.value_json) for row in rows}


def user_attributes(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> Mapping[str, Any]:
    """All attributes of a trial, also of a study that is open with some of them only."""
    database = getattr(study._storage, "_backend", None)
    if isinstance(database, Database):
        return database.get_trial_attrs(trial._trial_id)
    stored = study._storage.get_trial(trial._trial_id)
    return {**stored.system_attrs, **stored.user_attrs}


def set_attributes(trial: optuna.Trial, **attrs: Any) -> None:
    """Set attributes of a running trial; in a database, all in one transaction."""
    database = getattr(trial.storage, "_backend", None)
    if isinstance(database, Database):
        database.set_trial_attrs(trial._trial_id, attrs)
        shown = {key: value for key, value in attrs.items() if key not in HIDDEN}
        trial._cached_frozen_trial.user_attrs.update(shown)
        return
    for key, value in attrs.items():
        if key in HIDDEN:
            trial.storage.set_trial_system_attr(trial._trial_id, key, value)
        else:
            trial.set_user_attr(key, value)


def save_note(study: optuna.Study, trial: FrozenTrial | None, text: str) -> None:
    """Store Markdown that optuna-dashboard shows with a trial, or with the study.

    As its own `save_note` does, in attributes of the study. Each edit in its page increases the
    version, so what a person has written there is kept.
    """
    prefix = "dashboard:" if trial is None else f"dashboard:{trial._trial_id}:"
    wanted: dict[str, Any] = {f"{prefix}note_str:0": text[:NOTE_LENGTH], f"{prefix}note_ver": 1}
    database, id_ = getattr(study._storage, "_backend", None), study._study_id
    if isinstance(database, Database):
        known = database.get_study_attrs(id_, list(wanted))
    else:
        known = study._storage.get_study_system_attrs(id_)
    if known.get(f"{prefix}note_ver", 1) == 1:
        for key in (key for key, value in wanted.items() if known.get(key) != value):
            study._storage.set_study_system_attr(id_, key, wanted[key])


def move_notes(study: optuna.Study, copied: optuna.Study) -> None:
    """Give the trials of a copied study their notes, which name trials by ids of the storage."""
    trials = zip(study.get_trials(deepcopy=False), copied.get_trials(deepcopy=False), strict=True)
    pairs = ((old._trial_id, new._trial_id) for old, new in trials)
    ids = {str(old): new for old, new in pairs if old != new}
    for key, value in study._storage.get_study_system_attrs(study._study_id).items():
        match key.split(":", 2):
            case ["dashboard", old, name] if old in ids:
                moved = f"dashboard:{ids[old]}:{name}"
                copied._storage.set_study_system_attr(copied._study_id, moved, value)


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


def quiet() -> warnings.catch_warnings[None]:
    """A context without Optuna's warnings that a feature is experimental."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def trial_seed(seed: int, number: int) -> int:
    """The seed of the sampler that proposes this trial of a study."""
    return (seed * 1_000_003 + number) % 2**31


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's TPE for one trial, multivariate and grouped by which dimensions occur together.

    It treats running trials as poor ones.
    """

    def __init__(self, seed: int, startup: int) -> None:
        with quiet():
            super().__init__(seed=seed, n_startup_trials=startup, constant_liar=True,
                             multivariate=True, group=True)  # fmt: skip
