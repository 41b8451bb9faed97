"""The studies of a run in Optuna's storage: SQLite, a database by URL, or a journal file."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from mptune.errors import InputError, MptuneError, one_line
from mptune.spec.schema import fixed_on_resume
from mptune.study import records
from mptune.study.optuna_private import Database, move_notes, quiet
from mptune.trial import StageName, Trial

STORAGE_ATTEMPTS = 10

JOURNAL = "journal://"

RECONNECT_S = 120.0
"""How long a search waits for a database server that cannot be reached."""

NOT_YET = ("starting up", "shutting down", "not yet accepting", "recovery mode")
"""Words with which a PostgreSQL server that starts or ends refuses a connection."""

CONNECTION_LOST = (optuna.exceptions.StorageInternalError, OperationalError)
"""Errors of a storage whose server cannot be reached."""

DRIVER_ATTRIBUTES = (
    "arm",
    records.ASKED,
    records.CURVE,
    "detail",
    "fingerprint",
    records.JUDGED,
    records.JUDGED_BY,
    "label",
    "learning",
    "reason",
    "refused",
    "repeats",
    "retries",
    "run_key",
    "same_as",
    "tree",
)
"""User attributes that a driver or its sampler reads of every trial."""

SUFFIXES: Mapping[StageName, str] = {
    "search": "",
    "confirmation": "/confirm",
    "ladder": "/ladder",
    "comparison": "/compare",
}
"""Appended to the run's name to give the name of a stage's study; stages in order of running."""


@dataclass(frozen=True)
class StudyStorage:
    """The location of the studies of one run: one per stage.

    Attributes:
        database: SQLite file that is used without a URL.
        url: SQLAlchemy URL, or `journal:///path/of/a/file`; None is SQLite at `database`.
        name: the run's name, which names its studies.
    """

    database: Path
    url: str | None
    name: str

    def study_name(self, stage: StageName) -> str:
        """The name of a stage's study in the storage."""
        return self.name + SUFFIXES[stage]

    def open(self, only: Sequence[str] = ()) -> optuna.storages.BaseStorage:
        """Optuna's storage. With `only`, trials come with these user attributes alone.

        Raises:
            InputError: the URL names no database that can be opened.
            MptuneError: its server does not answer now.
        """
        if self.url is None and not self.database.exists():
            self.database.parent.mkdir(parents=True, exist_ok=True)
            self.database.touch()
        for attempt in range(1, STORAGE_ATTEMPTS + 1):
            try:
                if self.url is not None:
                    is_file = self.url.startswith(("sqlite", JOURNAL))
                    return (_open if is_file else _open_server)(self.url, tuple(only))
                path = self.database.absolute()
                return _open_file(path, tuple(only), path.stat().st_ino)
            except Exception as error:
                reason = str(error).splitlines()[0]
                # Two processes that meet an empty database both create its tables; one fails.
                if "already exists" not in reason or attempt == STORAGE_ATTEMPTS:
                    kind = MptuneError if is_away(error) else InputError
                    raise kind(f"storage.url: cannot open Optuna's storage: {reason}") from None
                time.sleep(0.1 * attempt)
        raise AssertionError

    def load(self, stage: StageName) -> optuna.Study | None:
        """The study of a stage; None if there is none."""
        if self.url is None and not self.database.exists():
            return None
        with suppress(KeyError):
            return optuna.load_study(study_name=self.study_name(stage), storage=self.open())
        return None

    def create(self, stage: StageName) -> optuna.Study:
        """Create or load the study of a stage to drive it, without a pruner."""
        study = optuna.create_study(
            study_name=self.study_name(stage),
            storage=self.open(only=DRIVER_ATTRIBUTES),
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),
        )
        with quiet():
            study.set_metric_names(["LML (nats per token)"])
        return study

    def trials(self, stage: StageName = "search") -> list[Trial]:
        """Every trial of a stage in order of number; empty if the stage has no study."""
        study = self.load(stage)
        found = study.get_trials(deepcopy=False) if study else []
        return [records.as_trial(trial, stage) for trial in found]

    def delete(self) -> None:
        """Remove all studies of the run."""
        storage = self.open()
        for stage in SUFFIXES:
            with suppress(KeyError):
                optuna.delete_study(study_name=self.study_name(stage), storage=storage)

    def copy_to(self, database: Path) -> None:
        """Copy all studies of the run, trials and attributes, to an SQLite file."""
        to = f"sqlite:///{database.absolute()}"
        for stage in SUFFIXES:
            if (study := self.load(stage)) is not None:
                name = self.study_name(stage)
                optuna.copy_study(from_study_name=name, from_storage=self.open(), to_storage=to)
                move_notes(study, optuna.load_study(study_name=name, storage=to))


def claim_spec(study: optuna.Study, resolved: Mapping[str, Any]) -> None:
    """Store the spec with the study, or check that a resume has the same one.

    Raises:
        InputError: the stored spec differs in something that changes results.
    """
    wanted = fixed_on_resume(resolved)
    stored = study.user_attrs.get("spec")
    if stored is None:
        study.set_user_attr("spec", json.dumps(wanted, sort_keys=True))
        return
    differences = list(_differences(json.loads(stored), json.loads(json.dumps(wanted)), ""))
    if differences:
        raise InputError(
            f"study {study.study_name!r} was started with another spec: {differences[0]}; "
            "use --fresh to delete its trials and start over, or another --run-dir"
        )


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{path} was {json.dumps(old)}, is {json.dumps(new)}"


@lru_cache(maxsize=8)
def _open_file(database: Path, only: Sequence[str], inode: int) -> optuna.storages.BaseStorage:
    """An SQLite file, which is opened once in a process: that takes as long as reading ten trials.

    `inode` tells a new file from a deleted one, whose number stays in use while it is open.
    """
    return _open(f"sqlite:///{database}", only)


@lru_cache(maxsize=8)
def _open_server(url: str, only: Sequence[str]) -> optuna.storages.BaseStorage:
    """A database server, which is opened once in a process: from then on it may restart."""
    return _open(url, only)


def _open(address: str, only: Sequence[str]) -> optuna.storages.BaseStorage:
    if address.startswith(JOURNAL):
        # `journal:///a/file` is absolute, `journal://a/file` relative to the current folder.
        file = Path(address.removeprefix(JOURNAL))
        file.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    wait = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
    storage = Database(address, {"pool_pre_ping": True, **wait}, only)
    if storage.engine.dialect.name != "sqlite":
        survive_restarts(storage)
    return storage


def await_server(
    url: str | None, timeout_s: float, say: Callable[[str], None], interrupted: threading.Event
) -> None:
    """Wait until the database server answers, or until interrupted; a file does not answer.

    A server that answers may still refuse: that is the user's error, and `open` reports it.

    Raises:
        MptuneError: the server has not answered within `timeout_s`.
    """
    if url is None or url.startswith((JOURNAL, "sqlite")):
        return
    try:
        engine = create_engine(url, poolclass=NullPool)
    except (ArgumentError, ImportError):
        return
    give_up = time.monotonic() + timeout_s
    said = False
    while True:
        try:
            engine.connect().close()
            return
        except OperationalError as error:
            if not is_away(error):
                return
            reason = str(error.orig).splitlines()[0]
        if time.monotonic() > give_up:
            raise MptuneError(f"storage.url: no database server answers: {reason}")
        if not said:
            said = True
            say(f"note: no database server answers yet ({reason}); waiting up to {timeout_s:g} s")
        if interrupted.wait(0.5):
            return


def is_away(error: Exception) -> bool:
    """Whether a database server cannot be reached now, and has not refused."""
    if not isinstance(error, DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    reason = str(error.orig)
    return "FATAL" not in reason or any(words in reason for words in NOT_YET)


def survive_restarts(storage: optuna.storages.RDBStorage) -> None:
    """Let the storage wait for an unreachable server, and repeat interrupted calls.

    Asking for a trial cannot be repeated; `StudyDriver` handles it.
    """

    def connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
        return _retry(lambda: dialect.connect(*args, **options), dialect.dbapi.OperationalError)

    def repeat(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return _retry(lambda: method(*args, **options), CONNECTION_LOST)

    sqlalchemy_event.listen(storage.engine, "do_connect", connect)
    # Reading, or setting a value again, may be repeated.
    names = [name for name in dir(storage) if name.startswith(("get_", "set_"))]
    for name in ("_get_trials", "_set_trial_param", *names):
        if name != "set_trial_state_values":
            setattr(storage, name, partial(repeat, getattr(storage, name)))
    tell: Any = partial(_tell, storage.set_trial_state_values)
    storage.set_trial_state_values = tell  # type: ignore[method-assign]


def _tell(tell: Callable[..., bool], *args: Any, **options: Any) -> bool:
    """Set a trial's state; on a repeat, "has ended already" means that the first call worked."""
    attempts = count()

    def attempt() -> bool:
        first = next(attempts) == 0
        try:
            return tell(*args, **options)
        except optuna.exceptions.UpdateFinishedTrialError:
            if first:
                raise
            return True

    return bool(_retry(attempt, CONNECTION_LOST))


def _retry(
    attempt: Callable[[], Any], errors: type[Exception] | tuple[type[Exception], ...]
) -> Any:
    give_up = time.monotonic() + RECONNECT_S
    while True:
        try:
            return attempt()
        except errors as error:
            if time.monotonic() > give_up:
                raise MptuneError(
                    f"storage.url: the database server has not answered for {RECONNECT_S:g} s: "
                    f"{one_line(error)}"
                ) from error
            time.sleep(0.5)
