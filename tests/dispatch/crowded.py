"""A driver beside others on a cluster: `python -m tests.dispatch.crowded ADDRESS DIRECTORY SCENE`.

Others take places by placement groups of their own. Says as JSON what became of one trial: where
it was planned, where it ran, the details of its gangs' ends, and why it waited meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from mptune.dispatch import gang as gang_module
from mptune.dispatch.placement import FreeResources, Shape
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.dispatch.ray_private import NODE_LABEL
from mptune.spec.schema import Resources
from mptune.trial import Event, GangChanged, Started
from tests import fakes
from tests.dispatch.helpers import until_ended

ONE = Resources(cpus_per_worker=1)


@contextmanager
def taken(*nodes: str) -> Iterator[None]:
    """Somebody else has all of these nodes."""
    pins = [{NODE_LABEL: node} for node in nodes]
    group = placement_group([{"CPU": 1}] * len(nodes), bundle_label_selector=pins)
    ray.get(group.ready(), timeout=100)
    try:
        yield
    finally:
        remove_placement_group(group)


def seen(dispatcher: RayDispatcher, planned: str) -> list[Event]:
    """Others were there before."""
    with taken(planned):
        return until_ended(dispatcher, 0)


def blind(dispatcher: RayDispatcher, planned: str) -> list[Event]:
    """Others come after the last look: it is as if that place were free."""
    cluster = dispatcher._cluster
    cluster.unused = lambda: {n.id: n for n in cluster.nodes()}  # type: ignore[method-assign]
    gang_module.PLACE_TIMEOUT_S = 2.0
    with taken(planned):
        return until_ended(dispatcher, 0)


def full(dispatcher: RayDispatcher, planned: str) -> list[Event]:
    """Others are everywhere, until they leave."""
    others = (n.id for n in dispatcher._cluster.nodes() if n.id != planned)
    with taken(*others):
        with taken(planned):
            waited = [e for _ in range(3) for e in dispatcher.events(1.0)]
            (queued,) = dispatcher.state().queue
            print(json.dumps({"wait": queued.wait.kind, "told": len(waited)}))
        return until_ended(dispatcher, 0)


def said(events: list[Event], planned: str) -> dict[str, Any]:
    (started,) = (e for e in events if isinstance(e, Started))
    gone = [e.detail for e in events if isinstance(e, GangChanged) and e.state == "gone"]
    return {"planned": planned, "pids": started.pids, "gone": gone}


def main(address: str, directory: str, scene: str) -> None:
    dispatcher = RayDispatcher(ONE, runtime=fakes.FAKE_WORKER, address=address)
    try:
        (planned,) = FreeResources.of(dispatcher._cluster.nodes()).place(Shape.of(ONE)) or ()
        dispatcher.submit(fakes.trial(0, Path(directory), resources=ONE))
        events = globals()[scene](dispatcher, planned)
        (at,) = {g.held().placement for g in dispatcher._pool.gangs.values()}
        where = {"at": at, "cluster": dispatcher.address()}
        print(json.dumps({**said(events, planned), **where}))
    finally:
        dispatcher.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
