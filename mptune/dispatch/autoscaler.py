"""A cluster that grows: its autoscaler is told what a search needs.

No placement group is made before admission, so that an autoscaler would see no demand at all; it is
told the demand instead. It keeps what was asked for last, by whichever driver of the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.autoscaler.sdk import request_resources

from mptune.dispatch.room import Shape


class Autoscaler:
    """What Ray's autoscaler of this cluster was asked for last."""

    def __init__(self) -> None:
        self._asked: list[dict[str, float]] = []

    def want(self, gangs: Sequence[Shape]) -> None:
        """Let the cluster have room for these gangs, used or not; none: as much as is in use."""
        bundles = [_bundle(gang) for gang in gangs for _ in range(gang.workers)]
        if bundles != self._asked:
            request_resources(bundles=bundles)
            self._asked = bundles


def _bundle(gang: Shape) -> dict[str, float]:
    return {"CPU": gang.cpus} | ({"GPU": gang.gpus} if gang.gpus else {})
