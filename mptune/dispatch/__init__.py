"""Where trials run. Importing this does not import Ray; making a Ray dispatcher does."""

from __future__ import annotations

from mptune.dispatch.admission import refusal
from mptune.dispatch.base import Dispatcher
from mptune.dispatch.room import Room, Shape
from mptune.dispatch.runtime import WORKER
from mptune.forecast import Predictor
from mptune.spec import Resources


def make(
    resources: Resources,
    *,
    local: bool,
    address: str | None,
    runtime: str = WORKER,
    predictor: Predictor | None = None,
) -> Dispatcher:
    """The dispatcher for trials of this shape: in this process, on Ray here, or at `address`.

    What `predictor` has learned, from whoever teaches it, decides who may start before whom.

    Raises:
        DispatchError: Ray cannot be started or reached.
    """
    if local:
        from mptune.dispatch.local import LocalDispatcher

        return LocalDispatcher(runtime)
    from mptune.dispatch.ray_dispatcher import RayDispatcher

    return RayDispatcher(resources, runtime=runtime, address=address, predictor=predictor)


def misfits(resources: Resources, address: str) -> list[str]:
    """Why some gangs could never be in the Ray cluster at `address`, one line each.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch.cluster import Cluster

    cluster = Cluster(address)
    try:
        nodes = cluster.nodes()
    finally:
        cluster.close()
    shapes = dict.fromkeys(Shape.of(gang) for gang in resources.gangs())
    return [refusal(shape, nodes) for shape in shapes if not Room.of(nodes).fits(shape)]
