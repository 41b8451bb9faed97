"""One driver per study: the lock of a run directory, and a PostgreSQL advisory lock.

The kernel releases the lock of the run directory when the driver's process ends, however it ends.
The PostgreSQL server releases the advisory lock when the connection ends: at once when the driver
dies, and after `timeout_s` without a message when its machine vanishes, freezes or loses its
network. Other databases have no such lock; there the run directory's lock is the only one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mptune.errors import InputError, MptuneError, RunInUse
from mptune.paths import RunDirectory, write_text
from mptune.study.storage import is_away

CHECK_EVERY_S = 2.0

LOCK_TIMEOUT_S = 0.5
"""Longer than `is_driven` holds the lock."""


def this_process() -> str:
    """`process PID on HOST`, as other drivers and `mptune stop` read it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def driver_lock(run: RunDirectory) -> Iterator[None]:
    """Hold the run directory.

    Raises:
        RunInUse: another process drives this run; the message names it.
        InputError: the file system has no locks.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive a driver that is killed, and `is_driven` would not see it.
    lock = FileLock(run.lock, LOCK_TIMEOUT_S, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunInUse(
            f"{run.root} is being searched by {driver_of(run) or 'another process'}; "
            "wait for it, stop it, or give another --run-dir"
        ) from None
    except OSError as error:
        raise InputError(
            f"{run.root} cannot be locked ({error.strerror}); give another --run-dir"
        ) from None
    try:
        write_text(run.driver, this_process())
        yield
    finally:
        lock.release()


def driver_of(run: RunDirectory) -> str:
    """The process that drives the run, or drove it last; empty if none has."""
    return run.driver.read_text(encoding="utf-8") if run.driver.exists() else ""


def is_driven(run: RunDirectory) -> bool:
    """Whether a running driver has locked the run directory."""
    if not run.lock.exists():
        return False
    # A shared lock, which two readers can hold, on a file that needs only be readable.
    handle = os.open(run.lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def interrupts(asked: threading.Event) -> Iterator[None]:
    """Set `asked` at the first Ctrl-C or SIGTERM; a second one ends the process at once.

    Outside the main thread Python delivers no signals, and nothing is changed.
    """

    def on_signal(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lease(url: str | None, name: str, timeout_s: float) -> Iterator[PostgresLease | None]:
    """Hold the study, through restarts of the server, until another driver has taken it.

    Yields None where the run directory's lock alone keeps other drivers out.

    Raises:
        RunInUse: another driver holds it; the message names it.
    """
    try:
        is_postgres = url is not None and make_url(url).get_backend_name() == "postgresql"
    except ArgumentError:
        is_postgres = False
    if not is_postgres:
        yield None
        return
    held = PostgresLease(str(url), name, timeout_s)
    held.take()
    ended = threading.Event()
    keeper = threading.Thread(target=held.keep, args=(ended,), daemon=True)
    keeper.start()
    try:
        yield held
    finally:
        ended.set()
        keeper.join()
        held.close()


class PostgresLease:
    """The right to write to a study: a PostgreSQL advisory lock, kept alive by a thread."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        digest = hashlib.sha256(f"mptune/{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], signed=True)
        self._name, self._timeout_s = name, timeout_s
        self._connection: Connection | None = None
        self._backend: int | None = None
        self._known = threading.Condition()
        self._sure_until, self._lost = 0.0, False
        self._engine: Engine = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
            connect_args={
                "application_name": this_process(),
                "tcp_user_timeout": round(1000 * timeout_s),
            },
        )  # fmt: skip

    def is_held(self) -> bool:
        """Whether this driver holds it; blocks while that is unknown. A lost lease stays lost."""
        with self._known:
            self._known.wait_for(lambda: self._lost or _now() < self._sure_until)
            return not self._lost

    def take(self) -> None:
        """Take the lock.

        Raises:
            RunInUse: another driver holds the study.
            InputError: the server refuses.
            MptuneError: it does not answer, or has only now ended this driver's lost session.
        """
        asked_at = _now()
        try:
            connection = self._engine.connect()
            self._watch(connection)
            got = connection.execute(text("SELECT pg_try_advisory_lock(:k)"), {"k": self._key})
            if got.scalar():
                self._connection = connection
                self._backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
                self._set(asked_at + self._timeout_s)
                return
            backend, holder = self._holder(connection)
            if own := backend == self._backend and holder == this_process()[:63]:  # as it is kept
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
            connection.close()
        except SQLAlchemyError as error:
            reason = str(error).splitlines()[0]
            kind = MptuneError if is_away(error) else InputError
            raise kind(f"storage.url: cannot open Optuna's storage: {reason}") from None
        if own:
            raise MptuneError("the server had not noticed that this driver's connection was lost")
        raise RunInUse(
            f"study {self._name!r} in storage.url is being searched by {holder}; wait for it, "
            "stop it, or give the spec another name"
        )

    def keep(self, ended: threading.Event) -> None:
        """Keep the connection alive, and take the lock again when the connection was lost."""
        while not ended.wait(min(CHECK_EVERY_S, self._timeout_s / 4)):
            try:
                if self._connection is None:
                    self.take()
                else:
                    asked_at = _now()
                    self._connection.execute(text("SELECT 1"))
                    self._set(asked_at + self._timeout_s)
            except SQLAlchemyError:
                self.close()
            except RunInUse:
                self._set(0.0, lost=True)
                return
            except MptuneError:
                pass  # The server does not answer.

    def _set(self, sure_until: float, lost: bool = False) -> None:
        with self._known:
            self._sure_until, self._lost = sure_until, lost
            self._known.notify_all()

    def close(self) -> None:
        """Release the lock."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None

    def _watch(self, connection: Connection) -> None:
        """Let the server end this session if the client is silent (PostgreSQL 14 or later)."""
        third = max(1, round(self._timeout_s / 3))
        for setting, value in (("idle", third), ("interval", third), ("count", 2)):
            connection.execute(text(f"SET tcp_keepalives_{setting} = {value}"))
        connection.execute(
            text(
                "SELECT set_config('idle_session_timeout', :ms, false) "
                "WHERE current_setting('server_version_num')::int >= 140000"
            ),
            {"ms": str(round(1000 * self._timeout_s))},
        )

    def _holder(self, connection: Connection) -> tuple[int | None, str]:
        """Process of the server, and name, of the session that has the lock."""
        found = connection.execute(
            text(
                "SELECT pid, application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
                "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
                "AND (classid::bigint << 32 | objid::bigint) = :k"
            ),
            {"k": self._key},
        )
        pid, name = found.first() or (None, None)
        return pid, name or "another driver"


def _now() -> float:
    """Seconds of a clock that also runs while this machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
