"""What a dead driver of a run may have left on a shared cluster, known by the run's mark.

Ray ends a driver's gangs with the driver. Should it ever not, as of a driver whose end it did not
see, they hold their machines until somebody removes them by name. Its autoscaler keeps what it was
asked for until somebody asks for something else.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from mptune.dispatch import autoscaler
from mptune.dispatch.cluster import Cluster

REACH_TIMEOUT_S = 3.0


class Leftover(Protocol):
    """Something on the cluster that nobody needs any more."""

    @property
    def id(self) -> str:
        """Unique on its cluster."""

    @property
    def problem(self) -> str: ...

    @property
    def action(self) -> str:
        """What `remove` does."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class LeftGang:
    """A placement group that still holds, or waits for, its place."""

    id: str
    name: str
    state: str
    bundles: int

    @property
    def problem(self) -> str:
        return f"gang {self.name} ({self.state.lower()}, {self.bundles} workers) has no driver"

    action = "end its processes"

    def remove(self) -> None:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(self.id))))


@dataclass(frozen=True)
class LeftWish:
    """Machines that an autoscaler keeps for nobody."""

    wish: autoscaler.Wish

    id = "wish"

    @property
    def problem(self) -> str:
        return f"its autoscaler is asked for machines for {self.wish} by a driver that is gone"

    action = "ask for none"

    def remove(self) -> None:
        autoscaler.ask_for_nothing()


def is_reachable(address: str) -> bool:
    """Whether anything listens at `HOST:PORT`; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


def find(address: str, mark: str) -> list[Leftover]:
    """Everything on the cluster that was made for the run of this mark.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    with closing(Cluster(address)):
        return _find(mark)


def remove(address: str, mark: str, ids: Collection[str]) -> None:
    """Remove what has these ids: gangs with every process in them, or a wish.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    with closing(Cluster(address)):
        for found in _find(mark):
            if found.id in ids:
                found.remove()


def _find(mark: str) -> list[Leftover]:
    assert ray.is_initialized()
    return [*_gangs(mark), *_wishes(mark)]


def _gangs(mark: str) -> Iterator[LeftGang]:
    for id_, group in placement_group_table().items():
        if group["name"].startswith(f"{mark}/") and group["state"] != "REMOVED":
            yield LeftGang(id_, group["name"], group["state"], len(group["bundles"]))


def _wishes(mark: str) -> Iterator[LeftWish]:
    last = autoscaler.wish()
    if last is not None and last.mark.startswith(f"{mark}/"):
        yield LeftWish(last)
