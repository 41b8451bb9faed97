"""The claims of a search on a shared cluster: gangs, and machines of its autoscaler.

Claims have the mark of their run. Ray ends the gangs of a driver with the driver; if it misses the
driver's end, the gangs hold their machines until they are removed by name. An autoscaler keeps the
last request of any driver until the next one, even if the driver has died. So a note in the
cluster's key-value store has the mark of the driver that made the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import ray
from ray.autoscaler.sdk import request_resources
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from mptune.dispatch import ray_private
from mptune.dispatch.placement import Shape
from mptune.errors import plural

REPEAT_S = 30.0
"""After this time a request is repeated: another driver may have replaced it."""

NOTE = "machine-request"
"""Key of the note about the last request."""


def requester() -> str:
    """The mark of the driver that made the last request; empty if it was withdrawn."""
    return (ray_private.read_key(NOTE) or b"").decode(errors="replace")


def withdraw_request() -> None:
    """Let the cluster shrink to what is in use."""
    request_resources(bundles=[])
    ray_private.write_key(NOTE, None)


class Autoscaler:
    """Asks Ray's autoscaler for room. Before admission there is no placement group to see."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._requested: list[dict[str, float]] | None = None
        self._requested_at = 0.0

    def request(self, gangs: Sequence[Shape]) -> None:
        """Ask for room for these gangs, running ones among them; none withdraws the request."""
        bundles = [
            {"CPU": gang.cpus} | ({"GPU": gang.gpus} if gang.gpus else {})
            for gang in gangs
            for _ in range(gang.workers)
        ]
        now = time.monotonic()
        repeat = bool(bundles) and now - self._requested_at > REPEAT_S
        if bundles == self._requested and not repeat:
            return
        self._requested, self._requested_at = bundles, now
        if not bundles:
            withdraw_request()
            return
        # The note comes first: one without its request is harmless.
        ray_private.write_key(NOTE, self._mark)
        request_resources(bundles=bundles)


@dataclass(frozen=True)
class Orphan:
    """A claim whose driver has ended; `action` says what `remove` does."""

    problem: str
    action: str
    remove: Callable[[], None]


def find_orphans(mark: str) -> list[Orphan]:
    """All claims of the run of this mark on the connected cluster; its driver must have ended."""
    found = [
        Orphan(
            f"gang {group['name']} ({group['state'].lower()}, "
            f"{plural(len(group['bundles']), 'worker')}) has no driver",
            "end its processes",
            partial(_remove_group, id_),
        )
        for id_, group in placement_group_table().items()
        if group["name"].startswith(f"{mark}/") and group["state"] != "REMOVED"
    ]
    if requester().startswith(f"{mark}/"):
        problem = "its autoscaler is asked for machines by a driver that has ended"
        found.append(Orphan(problem, "withdraw the request", withdraw_request))
    return found


def _remove_group(id_: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))
