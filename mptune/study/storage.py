"""Optuna's storage: SQLite, a database by URL or a journal; and the studies in it, by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import orm as sqlalchemy_orm
from sqlalchemy.exc import OperationalError

from mptune.errors import InputError
from mptune.paths import RunDirectory

STORAGE_ATTEMPTS = 10

JOURNAL = "journal://"

RECONNECT_S = 120.0
"""How long a search waits for a database server that went away."""

REPEATABLE = (
    "_get_trials",
    "_set_trial_param",
    "get_all_trials",
    "get_n_trials",
    "get_study_directions",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "get_trial_user_attrs",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_param",
    "set_trial_system_attr",
    "set_trial_user_attr",
    "set_trial_user_attrs",
)

CUT_OFF = (optuna.exceptions.StorageInternalError, OperationalError)
"""What a storage raises whose server went away."""

_ATTRIBUTES: Any = models.TrialUserAttributeModel.__table__

_Errors = type[Exception] | tuple[type[Exception], ...]


class Database(optuna.storages.RDBStorage):
    """Optuna's, with a way to write several attributes of a trial in one transaction.

    With `only`, trials come without their other attributes: Optuna keeps every trial of an open
    study in memory.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any], only: Sequence[str] = ()) -> None:
        super().__init__(url, engine_kwargs)
        if only:
            _read_only(self, only)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set user attributes in one transaction, which may be repeated.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
            StorageInternalError: the server is out of reach, or will not have them.
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
        """All of them, whatever trials come with."""
        wanted = _ATTRIBUTES.select().where(_ATTRIBUTES.c.trial_id == trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            return {row.key: json.loads(row.value_json) for row in session.execute(wanted)}


def _read_only(storage: Database, keys: Sequence[str]) -> None:
    table = models.TrialUserAttributeModel
    criteria = sqlalchemy_orm.with_loader_criteria(table, table.key.in_(keys))

    def add(asked: sqlalchemy_orm.ORMExecuteState) -> None:
        if asked.is_select:
            asked.statement = asked.statement.options(criteria)

    sqlalchemy_event.listen(storage.scoped_session, "do_orm_execute", add)


def attributes_of(study: optuna.Study, trial: FrozenTrial) -> Mapping[str, Any]:
    """All user attributes of a trial, also of a study that is open without them."""
    database = getattr(study._storage, "_backend", None)
    if isinstance(database, Database):
        return database.get_trial_user_attrs(trial._trial_id)
    return trial.user_attrs


def open_storage(
    run: RunDirectory, url: str | None, only: Sequence[str] = ()
) -> optuna.storages.BaseStorage:
    """Optuna's storage: SQLite in the run directory, or any RDB by URL.

    With `only`, a database reads no user attributes of trials but these.

    Raises:
        InputError: the URL names no reachable database.
    """
    if url is None:
        run.root.mkdir(parents=True, exist_ok=True)
    address = url or f"sqlite:///{run.database.absolute()}"
    for attempt in range(1, STORAGE_ATTEMPTS + 1):
        try:
            return _storage(address, only)
        except Exception as error:
            reason = str(error).splitlines()[0]
            # Two processes that meet an empty database both create its tables; one of them loses.
            if "already exists" not in reason or attempt == STORAGE_ATTEMPTS:
                raise InputError(f"storage.url: cannot open Optuna's storage: {reason}") from None
            time.sleep(0.1 * attempt)
    raise AssertionError


def _storage(address: str, only: Sequence[str]) -> optuna.storages.BaseStorage:
    if address.startswith(JOURNAL):
        return _journal(address)
    wait = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
    storage = Database(address, {"pool_pre_ping": True, **wait}, only)
    if storage.engine.dialect.name != "sqlite":
        outlive_restarts(storage)
    return storage


def outlive_restarts(storage: optuna.storages.RDBStorage) -> None:
    """Wait for a server that went away after the storage was opened, and repeat what it cut off.

    What is repeated changes nothing the second time. Asking for a trial does: see
    `StudyDriver._asked`.
    """

    def connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
        return _patiently(lambda: dialect.connect(*args, **options), dialect.dbapi.OperationalError)

    sqlalchemy_event.listen(storage.engine, "do_connect", connect)
    for name in REPEATABLE:
        method = getattr(storage, name)
        setattr(storage, name, partial(_call, method, CUT_OFF))
    tell: Any = partial(_tell, storage.set_trial_state_values)
    storage.set_trial_state_values = tell  # type: ignore[method-assign]


def _call(method: Callable[..., Any], cut_off: _Errors, *args: Any, **options: Any) -> Any:
    return _patiently(lambda: method(*args, **options), cut_off)


def _tell(tell: Callable[..., bool], *args: Any, **options: Any) -> bool:
    """An end may have been stored whose answer was cut off: told again, it is there already."""
    attempts = count()

    def attempt() -> bool:
        first = next(attempts) == 0
        try:
            return tell(*args, **options)
        except optuna.exceptions.UpdateFinishedTrialError:
            if first:
                raise
            return True

    return bool(_patiently(attempt, CUT_OFF))


def _patiently(attempt: Callable[[], Any], errors: _Errors) -> Any:
    give_up = time.monotonic() + RECONNECT_S
    while True:
        try:
            return attempt()
        except errors:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def _journal(address: str) -> optuna.storages.BaseStorage:
    """`journal:///a/file` is absolute, `journal://a/file` from the current folder."""
    file = Path(address.removeprefix(JOURNAL))
    file.parent.mkdir(parents=True, exist_ok=True)
    backend = JournalFileBackend(str(file))
    return optuna.storages.JournalStorage(backend)


def has_study(run: RunDirectory, url: str | None, name: str) -> bool:
    """Whether the storage already holds the study."""
    if url is None and not run.database.exists():
        return False
    return name in optuna.study.get_all_study_names(open_storage(run, url))


def existing(run: RunDirectory, url: str | None, name: str) -> optuna.Study | None:
    """The study, opened once; None if there is none."""
    if url is None and not run.database.exists():
        return None
    with suppress(KeyError):
        return optuna.load_study(study_name=name, storage=open_storage(run, url))
    return None


def delete_studies(run: RunDirectory, url: str | None, names: Sequence[str]) -> None:
    """Remove studies from the storage, for `--fresh`."""
    storage = open_storage(run, url)
    for name in names:
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)


def copy_studies(run: RunDirectory, url: str | None, name: str, database: Path) -> None:
    """Copy all studies of a search, trials and attributes, to an SQLite file of their own."""
    there = open_storage(run, url)
    here = f"sqlite:///{database.absolute()}"
    for study_name in names(name):
        if has_study(run, url, study_name):
            optuna.copy_study(from_study_name=study_name, from_storage=there, to_storage=here)


def compare_name(name: str) -> str:
    """The study that holds a search's comparison."""
    return f"{name}/compare"


def confirm_name(name: str) -> str:
    """The study that holds a search's confirmation."""
    return f"{name}/confirm"


def names(name: str) -> tuple[str, str, str]:
    """All studies of a search: itself, its confirmation, its comparison."""
    return name, confirm_name(name), compare_name(name)
