"""A cluster that grows: its autoscaler is told what a search needs.

No placement group is made before admission, so that an autoscaler would see no demand at all; it is
told the demand instead. It keeps what was asked for last, by whichever driver of the cluster, also
once that driver is dead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ray.autoscaler.sdk import request_resources

from mptune.dispatch.room import Shape

AGAIN_S = 30.0
"""Another driver may have asked for something else meanwhile."""


class Autoscaler:
    """What Ray's autoscaler of this cluster was asked for last."""

    def __init__(self) -> None:
        self._asked: list[dict[str, float]] | None = None
        self._asked_at = 0.0

    def want(self, gangs: Sequence[Shape]) -> None:
        """Let the cluster have room for these gangs, used or not; none: as much as is in use."""
        bundles = [_bundle(gang) for gang in gangs for _ in range(gang.workers)]
        now = time.monotonic()
        if bundles != self._asked or (bundles and now - self._asked_at > AGAIN_S):
            request_resources(bundles=bundles)
            self._asked, self._asked_at = bundles, now


def _bundle(gang: Shape) -> dict[str, float]:
    return {"CPU": gang.cpus} | ({"GPU": gang.gpus} if gang.gpus else {})
