"""Who drives a study in a database: a PostgreSQL advisory lock, which a dead driver loses.

The server lets go of the lock when the connection ends: at once when the driver's process dies, and
after `timeout_s` without a word when its machine vanishes, freezes or loses its network. Other
databases have no such lock; there the lock of the run directory alone keeps a second driver out.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mptune.errors import InputError

LOOK_EVERY_S = 2.0


class Lease(Protocol):
    """The right to write to a study."""

    def is_held(self) -> bool:
        """Whether it is this driver's now; waits while nobody knows. Once lost, it stays lost."""


class Unneeded:
    """Where no second driver can come in."""

    def is_held(self) -> bool:
        return True


@contextmanager
def held(url: str | None, name: str, timeout_s: float) -> Iterator[Lease]:
    """Hold the study, through restarts of the server, until another driver has got it.

    Raises:
        InputError: another driver holds it; it is named.
    """
    if not _is_postgres(url):
        yield Unneeded()
        return
    lease = _Lease(str(url), name, timeout_s)
    lease.take()
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join()
        lease.close()


def _is_postgres(url: str | None) -> bool:
    try:
        return url is not None and make_url(url).get_backend_name() == "postgresql"
    except ArgumentError:
        return False


class _Lease:
    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        digest = hashlib.sha256(f"mptune/{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], signed=True)
        self._name, self._timeout_s = name, timeout_s
        self._connection: Connection | None = None
        self._known = threading.Condition()
        self._sure_until, self._lost = 0.0, False
        self._engine: Engine = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
            connect_args={
                "application_name": f"process {os.getpid()} on {socket.gethostname()}",
                "tcp_user_timeout": round(1000 * timeout_s),
            },
        )  # fmt: skip

    def is_held(self) -> bool:
        with self._known:
            self._known.wait_for(lambda: self._lost or _now() < self._sure_until)
            return not self._lost

    def take(self) -> None:
        """Raises InputError if another driver holds the study, or the server does not answer."""
        asked_at = _now()
        try:
            connection = self._engine.connect()
            self._watch(connection)
            got = connection.execute(text("SELECT pg_try_advisory_lock(:k)"), {"k": self._key})
            if got.scalar():
                self._connection = connection
                self._learn(asked_at + self._timeout_s)
                return
            holder = self._holder(connection)
            connection.close()
        except SQLAlchemyError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"storage.url: cannot open Optuna's storage: {reason}") from None
        raise InputError(
            f"study {self._name!r} in storage.url is being searched by {holder}; wait for it, "
            "stop it, or give the spec another name"
        )

    def keep(self, ended: threading.Event) -> None:
        """Say that this driver lives, and take it again when the connection was lost."""
        while not ended.wait(min(LOOK_EVERY_S, self._timeout_s / 4)):
            try:
                if self._connection is None:
                    self.take()
                else:
                    self._say(self._connection)
            except SQLAlchemyError:
                self.close()
            except InputError as error:
                if "is being searched" in str(error):
                    self._learn(0.0, lost=True)
                    return

    def _say(self, connection: Connection) -> None:
        asked_at = _now()
        connection.execute(text("SELECT 1"))
        self._learn(asked_at + self._timeout_s)

    def _learn(self, sure_until: float, lost: bool = False) -> None:
        with self._known:
            self._sure_until, self._lost = sure_until, lost
            self._known.notify_all()

    def close(self) -> None:
        """Let go."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None

    def _watch(self, connection: Connection) -> None:
        """Let the server end this session when it hears nothing (PostgreSQL 14 and later)."""
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

    def _holder(self, connection: Connection) -> str:
        found = connection.execute(
            text(
                "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
                "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
                "AND (classid::bigint << 32 | objid::bigint) = :k"
            ),
            {"k": self._key},
        )
        return str(found.scalar() or "another driver")


def _now() -> float:
    """Seconds that go on while this machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
