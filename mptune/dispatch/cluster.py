"""Ray itself: started on this machine, or attached to; and what the cluster holds."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private import services as ray_services
from ray._private import worker as ray_worker
from ray._private.state import available_resources_per_node
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError

from mptune.dispatch import client, devices, reaper, shipping
from mptune.dispatch.census import Census
from mptune.dispatch.devices import Machine
from mptune.dispatch.head import Head
from mptune.dispatch.placement import ClusterNode
from mptune.errors import DispatchError, one_line

OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's minimum: nothing large goes through its object store."""

FROM_ELSEWHERE = "; a search runs on a machine of the cluster, from elsewhere use `mptune launch`"
"""After the error of a machine that has no part in the cluster it has found."""


class Cluster:
    """A Ray of our own, with all CPUs and GPUs of this machine, on loopback; or one at `address`.

    With `ship`, processes at `address` run this process's mptune and plugins, whatever they have.

    Of a Ray Client server, ray://HOST:PORT, the cluster behind it is meant.

    Raises:
        DispatchError: Ray does not start, does not answer, or is already in use in this process.
    """

    def __init__(self, address: str | None, *, ship: bool = False) -> None:
        if ray.is_initialized():
            raise DispatchError("Ray is already in use in this process; close it first")
        by_client = address is not None and address.startswith(client.SCHEME)
        if address is not None and by_client:
            address = client.head_of(address)
        # Under `uv run` Ray would otherwise rebuild the environment for every worker process.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._reaper: subprocess.Popen[bytes] | None = None
        self._own = address is None
        self._census = Census()
        try:
            if address:
                _init(address=address, runtime_env=shipping.environment() if ship else None)
            else:
                self._start()
        except Exception as error:
            where = f"reach the Ray cluster at {address}" if address else "start Ray here"
            hint = FROM_ELSEWHERE if by_client else ""
            raise DispatchError(f"cannot {where}: {_why(error)}{hint}") from error
        gcs = ray.get_runtime_context().gcs_address
        self.address = str(gcs) if address else None
        """Of the head, if the cluster is not of our own."""
        self._head = Head(gcs, lambda: str(GcsClient(address=gcs).cluster_id))

    def is_there(self) -> bool:
        """Whether Ray can be asked for something now; false while its head is away.

        Raises:
            DispatchError: the head is lost for good.
        """
        return self._head.is_there()

    def is_away(self) -> bool:
        """Whether Ray would not answer, now or ever."""
        return self._head.is_away()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Ray is asked for something, which fails in silence if its head goes away meanwhile.

        Raises:
            DispatchError: the head is lost for good, or Ray fails although it is there.
        """
        try:
            yield
        except RayError as error:
            if not self._head.excuses(error):
                raise DispatchError(f"Ray has failed: {one_line(error)}") from error

    def nodes(self) -> list[ClusterNode]:
        """All CPUs and GPUs of the machines that are up.

        Raises:
            DispatchError: none is; not even the one that Ray itself runs on.
        """
        alive = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        if not alive:
            raise DispatchError("Ray has died; the same command goes on where this one ended")
        return [_node(n["NodeID"], n["Resources"]) for n in alive]

    def unused(self) -> dict[str, ClusterNode]:
        """What nobody holds of each machine, or did a moment ago."""
        nodes = available_resources_per_node()  # type: ignore[no-untyped-call]
        return {id_: _node(id_, unused) for id_, unused in nodes.items()}

    def machines(self, nodes: Sequence[str]) -> dict[str, Machine]:
        """Memory and GPUs of these nodes, without those that have not said yet; see `Census`."""
        if self._own:
            return dict.fromkeys(nodes, self._this_machine)
        return self._census.known(nodes)

    @cached_property
    def _this_machine(self) -> Machine:
        return devices.this_machine()

    def metrics_url(self) -> str | None:
        """Where this process's metrics are served: on its node, if its agent serves any."""
        here = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["NodeID"] == here and node.get("MetricsExportPort"):
                return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        return None

    def close(self) -> None:
        """Stop Ray if it was started here, else leave it."""
        self._head.close()
        ray.shutdown()
        if self._reaper:
            self._reaper.communicate()
            self._reaper = None

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        before = _descendants()
        with _on_loopback(), _in_own_sessions():
            _init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
        self._reaper = _start_reaper(_descendants() - before)


def _node(id_: str, resources: Mapping[str, float]) -> ClusterNode:
    return ClusterNode(id_, resources.get("CPU", 0), resources.get("GPU", 0))


def _why(error: BaseException | None) -> str:
    """The error in one line; of a refused token that is said, which Ray hides in the causes."""
    cause = error
    while cause is not None:
        if "AuthenticationError" in f"{type(cause).__name__} {cause}":
            return (
                "it does not accept your token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                "~/.ray/auth_token) to the cluster's"
            )
        cause = cause.__cause__
    assert error is not None
    return one_line(error)


def _init(**options: Any) -> None:
    # Ray prints the raylet's view of every dead worker, even when told not to log to the driver;
    # a dead worker is a failed trial here, and is reported as one.
    ray_worker.print_to_stdstream = lambda *_, **__: None
    with _same_handler(signal.SIGTERM):
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _same_handler(number: signal.Signals) -> Iterator[None]:
    """Give a signal back to whom it belonged: Ray takes SIGTERM, to exit at once."""
    before = signal.getsignal(number)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _on_loopback() -> AbstractContextManager[None]:
    """Let Ray bind to 127.0.0.1: it has a switch for that, but for macOS and Windows only."""
    return _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


def _in_own_sessions() -> AbstractContextManager[None]:
    """Keep Ray's services out of the reach of signals to the driver's process group.

    `timeout`, Slurm and systemd send SIGTERM to the whole group: with Ray gone at once, the driver
    could not stop its trials at a checkpoint.
    """
    popen = partial(subprocess.Popen, start_new_session=True)
    return _replaced(ray_services, "ConsolePopen", popen)


def _descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _start_reaper(pids: set[int]) -> subprocess.Popen[bytes]:
    """It acts when the pipe to it closes, as it does at any end of this process."""
    leaders = [f"{pid}:{start}" for pid, start in _session_leaders(pids)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__, *leaders],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _session_leaders(pids: set[int]) -> Iterator[tuple[int, int]]:
    for pid in pids:
        with suppress(OSError):
            session, start = reaper.session_and_start(pid)
            if session == pid:
                yield pid, start
