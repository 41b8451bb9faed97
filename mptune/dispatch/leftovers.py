"""Gangs on a shared cluster that carry the mark of a run directory.

Ray ends a driver's gangs with the driver. Should it ever not, as of a driver whose end it did not
see, they hold their machines until somebody removes them by name.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from mptune.dispatch.cluster import Cluster

REACH_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Leftover:
    """A placement group that still holds, or waits for, its place."""

    id: str
    name: str
    state: str
    bundles: int

    def __str__(self) -> str:
        return f"{self.name} ({self.state.lower()}, {self.bundles} workers)"


def is_reachable(address: str) -> bool:
    """Whether anything listens at `HOST:PORT`; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


def find(address: str, mark: str) -> list[Leftover]:
    """Every gang on the cluster that was made for the run of this mark.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    with closing(Cluster(address)):
        return _find(mark)


def remove(address: str, mark: str, ids: Collection[str]) -> None:
    """Remove these gangs, with every process in them.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    with closing(Cluster(address)):
        for found in _find(mark):
            if found.id in ids:
                group = PlacementGroup(PlacementGroupID(bytes.fromhex(found.id)))
                remove_placement_group(group)


def _find(mark: str) -> list[Leftover]:
    assert ray.is_initialized()
    return [
        Leftover(id_, group["name"], group["state"], len(group["bundles"]))
        for id_, group in placement_group_table().items()
        if group["name"].startswith(f"{mark}/") and group["state"] != "REMOVED"
    ]
