"""The shared Ray cluster that a run directory used last, and the name prefix of its gangs."""

from __future__ import annotations

import hashlib
import json
import socket

from mptune import dispatch
from mptune.paths import RunDirectory, write_json


def gang_prefix(run: RunDirectory) -> str:
    """Prefix of the names of the run's gangs; a copy of the directory has another one."""
    place = f"{socket.gethostname()}:{run.root.resolve()}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"mptune/{run.root.resolve().name}-{digest}"


def store_address(run: RunDirectory, address: str) -> None:
    """Store the cluster's address; called before the first gang is created there."""
    write_json(run.cluster, {"address": address, "mark": gang_prefix(run)})


def last_cluster(run: RunDirectory) -> str | None:
    """Address of the last driver's cluster if it answers; None without one.

    None also in a copy of the directory, on this or another machine: it must not end the gangs of
    the original.
    """
    try:
        stored = json.loads(run.cluster.read_text(encoding="utf-8"))
        address: str = stored["address"]
        is_original = stored["mark"] == gang_prefix(run)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if is_original and dispatch.is_reachable(address) else None
