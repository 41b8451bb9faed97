"""A Ray cluster of several nodes on this machine, apart from drivers, to be hurt node by node."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mptune.dispatch import process
from mptune.paths import free_port
from tests import plain

RAY = """
from ray._private.node import Node
from ray.scripts.scripts import main
for name in ("start_api_server", "start_ray_client_server"):
    setattr(Node, name, lambda *_, **__: None)
main()
"""
"""The program `ray` whose head starts no server that is not used here: 3 CPU seconds."""

OBJECT_STORE = "--object-store-memory=80000000"
CONNECT = """
import os, sys, ray
answer, sys.stdout = sys.stdout, sys.stderr  # Ray prints the deaths of nodes on standard output
answer.reconfigure(line_buffering=True)  # Python flushes only what `sys.stdout` is when it exits
ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')
"""
LEFTOVERS = """
for group in ray.util.placement_group_table().values():
    if group['state'] != 'REMOVED':
        print('placement group', group['placement_group_id'], group['state'], file=answer)
for actor, known in ray._private.state.actors().items():
    if known['State'] != 'DEAD':
        print('actor', actor, known['State'], file=answer)
"""


@dataclass(frozen=True)
class Node:
    """What one `ray start` left: every process of its session."""

    session: int

    def pids(self) -> set[int]:
        return set(process.session_members({self.session}))

    def has(self, pid: int) -> bool:
        with suppress(OSError):
            return os.getsid(pid) == self.session
        return False

    def service(self, name: str) -> psutil.Process:
        """`raylet`, or `gcs_server` on the head."""
        return next(p for p in map(psutil.Process, self.pids()) if p.name() == name)

    def kill(self) -> None:
        """As if the power went."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class RayCluster:
    """`head` serves at `address`; drivers need `env`."""

    folder: Path
    env: dict[str, str]
    port: int
    client_port: int = field(default_factory=free_port)
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def start_head(self, cpus: float, *options: str) -> None:
        where = (f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false",
                 f"--ray-client-server-port={self.client_port}")  # fmt: skip
        if not any(option.startswith("--autoscaling") for option in options):
            where = (*where, "--no-monitor")
        self.nodes.insert(0, _started(self._start(cpus, "--head", *where, *options)))

    def add_nodes(self, count: int, cpus: float) -> None:
        """One after the other: nodes of one address that start at once take each other's ports."""
        for _ in range(count):
            self.nodes.append(_started(self._start(cpus, f"--address={self.address}")))

    def add_pod(self, cpus: float) -> Node:
        """A node as in a pod, whose first process gets the kubelet's SIGTERM; it starts up yet."""
        starting = self._start(cpus, f"--address={self.address}", "--block")
        self.nodes.append(Node(starting.pid))
        return self.nodes[-1]

    def node_of(self, pid: int) -> Node:
        return next(n for n in self.nodes if n.has(pid))

    def kill(self, node: Node) -> None:
        node.kill()
        self.nodes.remove(node)

    def leftovers(self) -> list[str]:
        """Actors and placement groups that still hold something."""
        return self.ask(LEFTOVERS)

    def ask(self, script: str, *arguments: str) -> list[str]:
        """The lines that a script, connected as `ray`, prints to `answer`."""
        asked = subprocess.run(
            [sys.executable, "-c", CONNECT + script, self.address, *arguments],
            env=self.env, capture_output=True, text=True,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.splitlines()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, cpus: float, *options: str) -> subprocess.Popen[str]:
        ports = ("--min-worker-port=0", "--max-worker-port=0",
                 f"--dashboard-agent-listen-port={free_port()}")  # fmt: skip
        lean = "--include-log-monitor=false"  # no driver here shows the output of workers
        return subprocess.Popen(
            [sys.executable, "-P", "-c", RAY, "start", "--node-ip-address=127.0.0.1",
             f"--num-cpus={cpus:g}", "--num-gpus=0", OBJECT_STORE, lean, *ports, *options],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip


def _started(process: subprocess.Popen[str]) -> Node:
    """The node, once it is up. Its services keep the output open, so nobody waits for its end."""
    assert process.stdout is not None
    code = process.wait(150)
    if code:
        Node(process.pid).kill()
        raise RuntimeError(process.stdout.read())
    process.stdout.close()
    return Node(process.pid)


@contextmanager
def ray_cluster(
    cpus: float, *options: str, port: int | None = None, **environment: str
) -> Iterator[RayCluster]:
    """A cluster with its head only, of so many CPUs; at a free port by default."""
    # Ray's sockets are below its folder, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
           "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": f"{plain.install(folder)}{os.pathsep}{plain.ROOT}",
           **environment}  # fmt: skip
    made = RayCluster(folder, env, port or free_port())
    try:
        made.start_head(cpus, *options)
        yield made
    finally:
        made.close()


def wait_until_gone(pids: Iterable[int], seconds: float = 60) -> set[int]:
    """Those of these processes that still run then."""
    give_up = time.monotonic() + seconds
    while (alive := {p for p in pids if _runs(p)}) and time.monotonic() < give_up:
        time.sleep(0.1)
    return alive


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def close_connections(pids: Iterable[int], ports: Collection[int] = ()) -> None:
    """Shut down the connections of these processes to ports, or to each other, from outside."""
    connections = [(pid, c) for pid in pids for c in tcp(pid) if c.raddr]
    own = {c.laddr for _, c in connections}
    for pid, connection in connections:
        if connection.raddr.port in ports if ports else connection.raddr in own:
            with suppress(OSError):
                handle = os.pidfd_open(pid)
                copy = ctypes.CDLL(None).syscall(438, handle, connection.fd, 0)
                os.close(handle)
                if copy < 0:  # closed meanwhile
                    continue
                with socket.socket(fileno=copy) as held:  # pidfd_getfd: the same connection
                    held.shutdown(socket.SHUT_RDWR)


def tcp(pid: int) -> list[Any]:
    with suppress(psutil.Error):
        return list(psutil.Process(pid).net_connections("tcp"))
    return []
