"""The shared Ray cluster that a run directory used last, and the name prefix of its gangs."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator

from mptune import dispatch
from mptune.paths import RunDirectory, write_text


def gang_prefix(run: RunDirectory) -> str:
    """Prefix of the names of the run's gangs; a copy of the directory has another one."""
    place = f"{socket.gethostname()}:{run.root.resolve()}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"mptune/{run.root.resolve().name}-{digest}"


def store_address(run: RunDirectory, address: str) -> None:
    """Store the cluster's address; called before the first gang is created there."""
    stored = {"address": address, "mark": gang_prefix(run), **_origin(run)}
    write_text(run.cluster, json.dumps(stored) + "\n")


def last_cluster(run: RunDirectory) -> tuple[str, str] | None:
    """(Address, gang prefix) of the last driver's cluster; None without one.

    None also in a copy of the directory, on this or another machine: it must not end the gangs of
    the original.
    """
    try:
        stored = json.loads(run.cluster.read_text(encoding="utf-8"))
        is_original = stored.items() >= _origin(run).items()
        return (stored["address"], stored["mark"]) if is_original else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _origin(run: RunDirectory) -> dict[str, str]:
    return {"host": socket.gethostname(), "root": str(run.root.resolve())}


def clusters_to_check(run: RunDirectory, address: str | None) -> Iterator[tuple[str, str]]:
    """(Address, gang prefix) of the cluster at `address`, or else of the last one if reachable."""
    last = last_cluster(run)
    if address is not None:
        yield address, last[1] if last else gang_prefix(run)
    elif last is not None and dispatch.is_reachable(last[0]):
        yield last
