"""Every use of Ray that is not part of its public API.

Tested against the versions of Ray that pyproject.toml allows: tests/dispatch/test_ray_private.py
names the function here that a new version breaks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ray._private import ray_constants, services, state, worker
from ray._private.node import Node
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import ActorUnavailableError, RayError
from ray.experimental import internal_kv

NODE_LABEL = "ray.io/node-id"
"""Ray gives every node this label; a bundle that selects it is placed on that node."""

NODE_DEATH = "its node has died"
"""In the message of the error about an actor whose node has died."""

OTHER_CLUSTER = "WrongClusterID"
"""In the error about a request that was meant for the head before the present one."""

NAMESPACE = "mptune"
"""Of our keys in the key-value store of the head."""


def silence_worker_output() -> None:
    """Keep Ray from printing the raylet's view of every dead worker, even with log_to_driver=False.

    A dead worker is a failed trial, which is reported as one.
    """
    worker.print_to_stdstream = lambda *_, **__: None


@contextmanager
def bound_to_loopback() -> Iterator[None]:
    """Start Ray's services on 127.0.0.1: Ray offers that on macOS and Windows only."""
    with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def own_sessions() -> Iterator[None]:
    """Start each of Ray's services in a session of its own.

    `timeout`, Slurm and systemd send SIGTERM to the driver's whole process group. If Ray ended
    then, the driver could not stop its trials at a checkpoint.
    """
    popen = partial(subprocess.Popen, start_new_session=True)
    with _replaced(services, "ConsolePopen", popen):
        yield


@contextmanager
def few_services() -> Iterator[None]:
    """Start Ray without three Python processes that a driver on its own machine has no use for.

    They serve a web page, drive an autoscaler and send the output of workers to the driver. Each
    takes one to two CPU seconds to start, and `ray.init` waits for the first.
    """
    with ExitStack() as stack:
        for name in ("start_api_server", "start_monitor", "start_log_monitor"):
            stack.enter_context(_replaced(Node, name, lambda *_, **__: None))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def unused_resources() -> Mapping[str, Mapping[str, float]]:
    """Node id -> resources that nothing uses, a moment ago."""
    return state.available_resources_per_node()  # type: ignore[no-untyped-call]


def leaving_nodes() -> set[str]:
    """Ids of the nodes that Ray drains. It drains a node whose `ray start` gets SIGTERM."""
    return set(state.state.get_draining_nodes())


def head_of(address: str) -> tuple[str, int] | None:
    """Host and port of the head at an address that Ray takes, such as `auto`; None: not known.

    Raises:
        ConnectionError: `auto`, and there is no cluster here.
    """
    found = services.canonicalize_bootstrap_address(address)
    host, _, port = (found or "").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else None


def cluster_id(address: str) -> str:
    """Identity of the head at `address`: a head restarted without its memory has another one."""
    return str(GcsClient(address=address).cluster_id)


def is_other_cluster(error: BaseException) -> bool:
    """Whether a request failed because the head was restarted without its memory."""
    return OTHER_CLUSTER in str(error)


def is_node_death(error: RayError) -> bool:
    """Whether the node of an actor died: a live node says itself how the actor ended."""
    return isinstance(error, ActorUnavailableError) or NODE_DEATH in str(error)


def nvml() -> Any:
    """The binding of NVIDIA's management library that Ray brings along."""
    from ray._private.thirdparty import pynvml

    return pynvml


def read_key(key: str) -> bytes | None:
    """From the key-value store of the cluster's head."""
    return internal_kv._internal_kv_get(key, namespace=NAMESPACE)


def write_key(key: str, value: str | None) -> None:
    """To the key-value store of the cluster's head; None deletes the key."""
    if value is None:
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    else:
        internal_kv._internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE)
