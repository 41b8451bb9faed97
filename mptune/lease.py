"""Who drives a study in a database: a PostgreSQL advisory lock, which a dead driver loses.

The server lets go of the lock when the connection ends: at once when the driver's process dies, and
after `timeout_s` when its machine vanishes. Other databases have no such lock; there the lock of
the run directory alone keeps a second driver out.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mptune.errors import InputError

LOOK_EVERY_S = 2.0


@contextmanager
def held(url: str | None, name: str, timeout_s: float, lost: threading.Event) -> Iterator[None]:
    """Hold the study, through restarts of the server; `lost` is set if another driver got it.

    Raises:
        InputError: another driver holds it; it is named.
    """
    if not _is_postgres(url):
        yield
        return
    lease = _Lease(str(url), name, timeout_s, lost)
    lease.take()
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    keeper.start()
    try:
        yield
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
    def __init__(self, url: str, name: str, timeout_s: float, lost: threading.Event) -> None:
        digest = hashlib.sha256(f"mptune/{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], signed=True)
        self._name, self._timeout_s, self._lost = name, timeout_s, lost
        self._connection: Connection | None = None
        self._engine: Engine = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
            connect_args={"application_name": f"process {os.getpid()} on {socket.gethostname()}"},
        )  # fmt: skip

    def take(self) -> None:
        """Raises InputError if another driver holds the study, or the server does not answer."""
        try:
            connection = self._engine.connect()
            self._watch(connection)
            got = connection.execute(text("SELECT pg_try_advisory_lock(:k)"), {"k": self._key})
            if got.scalar():
                self._connection = connection
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
        """Take it again when the connection was lost, until `ended`."""
        while not ended.wait(LOOK_EVERY_S):
            try:
                if self._connection is not None:
                    self._connection.execute(text("SELECT 1"))
                    continue
            except SQLAlchemyError:
                self.close()
            try:
                self.take()
            except InputError as error:
                if "is being searched" in str(error):
                    self._lost.set()
                    return

    def close(self) -> None:
        """Let go."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None

    def _watch(self, connection: Connection) -> None:
        """Let the server notice, in time, that this machine is gone."""
        third = max(1, round(self._timeout_s / 3))
        for setting, value in (("idle", third), ("interval", third), ("count", 2)):
            connection.execute(text(f"SET tcp_keepalives_{setting} = {value}"))

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
