"""Ray itself: started on this machine, or attached to; and what the cluster holds."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from mptune.dispatch import reaper
from mptune.dispatch.admission import Node
from mptune.dispatch.runtime import one_line
from mptune.errors import DispatchError

OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's minimum: nothing large goes through its object store."""


class Cluster:
    """A Ray of our own, with all CPUs and GPUs of this machine, on loopback; or one at `address`.

    Raises:
        DispatchError: Ray does not start, does not answer, or is already in use in this process.
    """

    def __init__(self, address: str | None) -> None:
        if ray.is_initialized():
            raise DispatchError("Ray is already in use in this process; close it first")
        # Under `uv run` Ray would otherwise rebuild the environment for every worker process.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._reaper: subprocess.Popen[bytes] | None = None
        try:
            _init(address=address) if address else self._start()
        except Exception as error:
            where = f"reach the Ray cluster at {address}" if address else "start Ray here"
            raise DispatchError(f"cannot {where}: {one_line(error)}") from error

    def nodes(self) -> list[Node]:
        """All CPUs and GPUs of the machines that are up.

        Raises:
            DispatchError: none is; not even the one that Ray itself runs on.
        """
        alive = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        if not alive:
            raise DispatchError("Ray has died; the same command goes on where this one ended")
        resources = {n["NodeID"]: n["Resources"] for n in alive}
        return [Node(i, r.get("CPU", 0), r.get("GPU", 0)) for i, r in resources.items()]

    def close(self) -> None:
        """Stop Ray if it was started here, else leave it."""
        ray.shutdown()
        if self._reaper:
            self._reaper.communicate()
            self._reaper = None

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        mark = uuid.uuid4().hex
        self._reaper = _start_reaper(mark)
        with _marked(mark), _loopback():
            _init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


def _init(**options: Any) -> None:
    # Ray prints the raylet's view of every dead worker, even when told not to log to the driver;
    # a dead worker is a failed trial here, and is reported as one.
    ray_worker.print_to_stdstream = lambda *_, **__: None
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray bind to 127.0.0.1: it has a switch for that, but for macOS and Windows only."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _marked(mark: str) -> Iterator[None]:
    """Mark the processes that are started meanwhile, and all that they will start."""
    os.environ[reaper.MARK] = mark
    try:
        yield
    finally:
        del os.environ[reaper.MARK]


def _start_reaper(mark: str) -> subprocess.Popen[bytes]:
    """It acts when the pipe to it closes, as it does at any end of this process."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__, mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is not for the reaper
    )
