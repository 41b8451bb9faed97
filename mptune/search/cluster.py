"""Which shared Ray cluster a run directory was searched on, and how its gangs are known there."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator

from mptune import dispatch
from mptune.paths import RunDirectory, write_text


def mark(run: RunDirectory) -> str:
    """Begins the name of every gang: the run directory's own, and not that of its copy."""
    place = f"{socket.gethostname()}:{run.root.resolve()}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"mptune/{run.root.resolve().name}-{digest}"


def remember(run: RunDirectory, address: str) -> None:
    """Keep where gangs will be, before there is one."""
    said = {"address": address, "mark": mark(run), **_place(run)}
    write_text(run.cluster, json.dumps(said) + "\n")


def known(run: RunDirectory) -> tuple[str, str] | None:
    """The last driver's cluster and mark; None if it had none, or was on another machine.

    A copy of the directory, here or on another machine, must not end the gangs of the original.
    """
    try:
        said = json.loads(run.cluster.read_text(encoding="utf-8"))
        ours = said.items() >= _place(run).items()
        return (said["address"], said["mark"]) if ours else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _place(run: RunDirectory) -> dict[str, str]:
    return {"host": socket.gethostname(), "root": str(run.root.resolve())}


def places(run: RunDirectory, address: str | None) -> Iterator[tuple[str, str]]:
    """Clusters to look at, with the mark to look for: the one that is named, or the last one."""
    last = known(run)
    if address is not None:
        yield address, last[1] if last else mark(run)
    elif last is not None and dispatch.is_reachable(last[0]):
        yield last
