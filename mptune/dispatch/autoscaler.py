"""A cluster that grows: its autoscaler is told what a search needs.

No placement group is made before admission, so that an autoscaler would see no demand at all; it is
told the demand instead. It keeps what was asked for last, by whichever driver of the cluster, also
once that driver is dead: whose wish it is, is noted beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from ray.autoscaler.sdk import request_resources
from ray.experimental import internal_kv

from mptune.dispatch.placement import Shape

AGAIN_S = 30.0
"""Another driver may have asked for something else meanwhile."""

NOTE, NAMESPACE = "wish", "mptune"
"""Where the note is in the store of the cluster's head."""


@dataclass(frozen=True)
class Wish:
    """What the autoscaler was asked for: workers, and their CPUs and GPUs in all."""

    mark: str
    """Of the driver that asked."""
    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} workers ({self.cpus:g} CPU{gpus})"


def wish() -> Wish | None:
    """What is noted of the last one, if it was not for nothing."""
    with suppress(TypeError, ValueError):  # none, or another version's
        return Wish(**json.loads(internal_kv._internal_kv_get(NOTE, namespace=NAMESPACE)))
    return None


def ask_for_nothing() -> None:
    """Let the cluster shrink to what is in use."""
    request_resources(bundles=[])
    internal_kv._internal_kv_del(NOTE, namespace=NAMESPACE)


class Autoscaler:
    """What Ray's autoscaler of this cluster was asked for last."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._asked: list[dict[str, float]] | None = None
        self._asked_at = 0.0

    def want(self, gangs: Sequence[Shape]) -> None:
        """Let the cluster have room for these gangs, used or not; none: as much as is in use."""
        bundles = [_bundle(gang) for gang in gangs for _ in range(gang.workers)]
        now = time.monotonic()
        if bundles != self._asked or (bundles and now - self._asked_at > AGAIN_S):
            self._ask(bundles)
            self._asked, self._asked_at = bundles, now

    def _ask(self, bundles: list[dict[str, float]]) -> None:
        if not bundles:
            ask_for_nothing()
            return
        cpus, gpus = (sum(b.get(kind, 0) for b in bundles) for kind in ("CPU", "GPU"))
        note = json.dumps(asdict(Wish(self._mark, len(bundles), cpus, gpus)))
        # First: a note without its wish is harmless.
        internal_kv._internal_kv_put(NOTE, note, overwrite=True, namespace=NAMESPACE)
        request_resources(bundles=bundles)


def _bundle(gang: Shape) -> dict[str, float]:
    return {"CPU": gang.cpus} | ({"GPU": gang.gpus} if gang.gpus else {})
