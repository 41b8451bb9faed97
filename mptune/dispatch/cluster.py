"""The connection to Ray: started on this machine or attached to, and what the cluster has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mptune.dispatch import devices, process, ray_private
from mptune.dispatch.devices import Machine
from mptune.dispatch.placement import ClusterNode
from mptune.errors import DispatchError, one_line
from mptune.plugins import GROUPS

OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's minimum: nothing large goes through its object store."""

WITHOUT_TASK_EVENTS = {"task_events_report_interval_ms": 0}
"""Ray keeps a record of every call for its web page, and grows by it. A search that starts Ray does
not start that page."""

START_TIMEOUT_S, TOO_BUSY = 120.0, "timed out during startup"
"""How long starting Ray is tried again after its error on a busy machine: it waits only 30 s."""

CONNECT_TIMEOUT_S = 20.0
"""For a head to take connections."""

SURVEY_TIMEOUT_S = 30.0
"""For the first nodes to report: a worker process starts on each and imports this module."""

HEAD_TIMEOUT_S = 40.0
"""How long a head may be away: Ray gives it 60 s, and closing takes some of them."""

HEAD_RETRY_S = 0.5

HEAD_NOTICE_S = 5.0
"""For the watch to notice that the head has gone, after a request to Ray has failed."""


class ClusterConnection:
    """A Ray of our own with all CPUs and GPUs of this machine, on loopback; or one at `address`.

    With `ship`, processes at `address` run this process's mptune and plugins instead of theirs.

    Raises:
        DispatchError: Ray does not start, does not answer, or is already in use in this process.
    """

    def __init__(self, address: str | None, *, ship: bool = False) -> None:
        if ray.is_initialized():
            raise DispatchError("Ray is already in use in this process; close it first")
        if address is not None and address.startswith("ray://"):
            raise DispatchError(
                f"--address: {address} is a Ray Client server, which ends workers with its "
                "connection; give auto or the head's HOST:PORT on a machine of the cluster, or use "
                "`mptune launch`"
            )
        # Under `uv run` Ray would otherwise rebuild the environment for every worker process.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._cleanup: subprocess.Popen[bytes] | None = None
        self._own = address is None
        self._survey = MachineSurvey()
        try:
            if address:
                _await_head(address)
                _init(address=address, runtime_env=driver_code() if ship else None)
            else:
                self._start()
        except Exception as error:
            where = f"reach the Ray cluster at {address}" if address else "start Ray here"
            hint = "" if address else "; `--local` runs the search without Ray, in this process"
            raise DispatchError(f"cannot {where}: {_describe(error)}{hint}") from error
        gcs = str(ray.get_runtime_context().gcs_address)
        self.address = gcs if address else None
        """HOST:PORT of the head; None for a Ray of our own."""
        self.head = HeadWatch(gcs, lambda: ray_private.cluster_id(gcs))

    @contextmanager
    def tolerate_absence(self) -> Iterator[None]:
        """Suppress the errors of requests to Ray that fail because its head has gone away.

        Raises:
            DispatchError: the head is lost for good, or Ray fails although the head is there.
        """
        try:
            yield
        except RayError as error:
            if not self.head.explains(error):
                raise DispatchError(f"Ray has failed: {one_line(error)}") from error

    def nodes(self) -> list[ClusterNode]:
        """All CPUs and GPUs of the machines that are up.

        Raises:
            DispatchError: no machine is up, not even the one that Ray itself runs on.
        """
        alive = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        if not alive:
            raise DispatchError("Ray has died; the same command continues the search")
        return [_node(n["NodeID"], n["Resources"]) for n in alive]

    def unused(self) -> dict[str, ClusterNode]:
        """The CPUs and GPUs of each machine that nothing uses, a moment ago."""
        return {id_: _node(id_, free) for id_, free in ray_private.unused_resources().items()}

    def machines(self, nodes: Sequence[str]) -> dict[str, Machine]:
        """Memory and GPUs of these nodes, without those that have not reported; see the survey."""
        if self._own:
            return dict.fromkeys(nodes, devices.this_machine())
        return self._survey.known(nodes)

    def metrics_url(self) -> str | None:
        """Where this process's metrics are served: on its node, if its agent serves any."""
        here = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["NodeID"] == here and node.get("MetricsExportPort"):
                return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        return None

    def close(self) -> None:
        """Disconnect; stop Ray if it was started here."""
        self.head.close()
        ray.shutdown()
        if self._cleanup:
            self._cleanup.communicate()
            self._cleanup = None

    def _start(self) -> None:
        """Start Ray, and beside it a process that ends what is left of it after this process."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        before, give_up = _descendants(), time.monotonic() + START_TIMEOUT_S
        loopback, sessions = ray_private.bound_to_loopback(), ray_private.own_sessions()
        with loopback, sessions, ray_private.few_services():
            while True:
                try:
                    _init(
                        address="local",
                        object_store_memory=OBJECT_STORE_BYTES,
                        _system_config=WITHOUT_TASK_EVENTS,
                    )
                    break
                except Exception as error:
                    if TOO_BUSY not in str(error) or time.monotonic() > give_up:
                        raise
                for pid in _descendants() - before:  # what has started of it
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(pid).kill()
        leaders = []
        for pid in _descendants() - before:
            with suppress(OSError):  # it has ended
                if os.getsid(pid) == pid:
                    leaders.append(f"{pid}:{process.start_ticks(pid)}")
        self._cleanup = subprocess.Popen(
            [sys.executable, "-I", "-S", process.__file__, *leaders],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )


def _await_head(address: str) -> None:
    """Return once the port of the head takes connections: Ray would try for many minutes.

    Raises:
        DispatchError: it does not within `CONNECT_TIMEOUT_S`.
        ConnectionError: `auto`, and there is no cluster here.
    """
    head, give_up = ray_private.head_of(address), time.monotonic() + CONNECT_TIMEOUT_S
    while head is not None:
        try:
            socket.create_connection(head, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise DispatchError(f"nothing answers at {head[0]}:{head[1]} ({error})") from None
            time.sleep(1)


def _init(**options: Any) -> None:
    ray_private.silence_worker_output()
    # Ray installs a handler of SIGTERM that exits at once.
    before = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _node(id_: str, resources: Mapping[str, float]) -> ClusterNode:
    return ClusterNode(id_, resources.get("CPU", 0), resources.get("GPU", 0))


def _describe(error: BaseException) -> str:
    """The error in one line. Ray hides a refused token in the causes of its error."""
    cause: BaseException | None = error
    while cause is not None:
        if "AuthenticationError" in f"{type(cause).__name__} {cause}":
            return (
                "it does not accept your token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                "~/.ray/auth_token) to the cluster's"
            )
        cause = cause.__cause__
    return one_line(error)


def driver_code() -> dict[str, Any]:
    """Ray's runtime environment with the driver's mptune and the packages of its plugins.

    Ray puts it first on the path of workers. The metadata of a distribution is included, because
    entry points are found by it.
    """
    paths = [_package_path("mptune")]
    with suppress(PackageNotFoundError):  # run from its sources
        paths += _metadata(Distribution.from_name("mptune"))
    for group in GROUPS:
        for plugin in entry_points(group=f"mptune.{group}"):
            paths.append(_package_path(plugin.module.partition(".")[0]))
            paths += _metadata(plugin.dist) if plugin.dist else []
    return {"py_modules": list(dict.fromkeys(map(str, paths))), "excludes": ["__pycache__"]}


def _package_path(package: str) -> Path:
    """The folder of a package, or the file of a module."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {package!r}, which has plugins of mptune")
    # A namespace package has no file of its own.
    for folder in spec.submodule_search_locations or ():
        return Path(folder)
    assert spec.origin is not None, "a module that is no package is a file"
    return Path(spec.origin)


def _metadata(distribution: Distribution) -> list[Path]:
    names = ("entry_points.txt", "METADATA")
    files = [file for file in distribution.files or () if file.name in names]
    return [Path(str(file.locate())).parent for file in files]


@dataclass
class MachineSurvey:
    """Memory and GPUs of the machines of a cluster; each reports once, by a task without CPUs.

    The first question waits for the answers; nodes that join later are not waited for.
    """

    _answers: dict[str, Any] = field(default_factory=dict)
    """Node id -> reference to what it reports."""

    def known(self, nodes: Sequence[str]) -> dict[str, Machine]:
        """Memory and GPUs of these nodes.

        A node that has not reported yet is left out; of a node that cannot report (it has left, or
        has another version of mptune) nothing is known.
        """
        wait_s = 0.0 if self._answers else SURVEY_TIMEOUT_S
        known = {}
        self._answers |= {node: ask_machine(node) for node in nodes if node not in self._answers}
        answers = list(self._answers.values())
        ready = ray.wait(answers, num_returns=len(answers), timeout=wait_s)[0] if answers else []
        for node in nodes:
            if self._answers[node] in ready:
                known[node] = Machine()
                with suppress(RayError):
                    known[node] = ray.get(self._answers[node])
        return known


@ray.remote(num_cpus=0, max_retries=0)
def _machine() -> Machine:
    return devices.this_machine()


def ask_machine(node: str) -> Any:
    """A reference to what this node has."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _machine.options(scheduling_strategy=there).remote()


class HeadWatch:
    """Watches over one open connection, in a thread, whether the head of the cluster is there.

    Ray ends a process that cannot reach the head for a minute, and aborts one that sends a request
    to a head that was restarted without its memory. So no request may go to Ray while the head is
    away. A head that keeps its memory in Redis may come back with the same `identity`; the search
    then continues.
    """

    def __init__(self, address: str, identity: Callable[[], str]) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._socket_address = address, (host, int(port))
        self._identity, self._known_identity = identity, identity()
        self._connection = socket.create_connection(self._socket_address)
        self._away_since: float | None = None
        self._absences = self._explained = 0
        self._restarted = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def is_reachable(self) -> bool:
        """Whether Ray answers requests now.

        Raises:
            DispatchError: the head is lost for good.
        """
        since = self._away_since
        if self._restarted:
            what = "was restarted"
        elif since is not None and time.monotonic() - since > HEAD_TIMEOUT_S:
            what = f"has been away for {HEAD_TIMEOUT_S:.0f} s"
        else:
            return since is None
        raise DispatchError(
            f"the head of the Ray cluster at {self._address} {what}; "
            "finished trials are kept: the same command continues the search"
        )

    def is_away(self) -> bool:
        """Whether Ray would not answer a request, now or ever."""
        return self._restarted or self._away_since is not None

    def explains(self, error: Exception) -> bool:
        """Whether Ray failed because the head was away, perhaps too briefly to be noticed yet.

        Raises:
            DispatchError: the head is lost for good.
        """
        self._restarted |= ray_private.is_other_cluster(error)
        give_up = time.monotonic() + HEAD_NOTICE_S
        while self.is_reachable() and self._absences == self._explained:
            if time.monotonic() > give_up:
                return False
            self._closed.wait(HEAD_RETRY_S / 10)
        self._explained = self._absences
        return True

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _watch(self) -> None:
        while True:
            with suppress(OSError):
                while self._connection.recv(4096):
                    pass
            if self._closed.is_set():
                return
            self._away_since = time.monotonic()
            self._absences += 1
            while self._away_since is not None and not self._closed.is_set():
                try:
                    self._connection = socket.create_connection(self._socket_address)
                    self._restarted = self._identity() != self._known_identity
                    self._away_since = None
                except Exception:
                    self._closed.wait(HEAD_RETRY_S)
