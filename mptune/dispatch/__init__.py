"""Where trials run. Importing this does not import Ray; making a Ray dispatcher does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mptune.dispatch.admission import refusal
from mptune.dispatch.base import Dispatcher, DurationForecast
from mptune.dispatch.placement import FreeResources, Shape
from mptune.dispatch.runtime import WORKER
from mptune.spec.schema import Resources

if TYPE_CHECKING:
    from mptune.dispatch.leftovers import Leftover


def make(
    resources: Resources,
    *,
    local: bool,
    address: str | None,
    runtime: str = WORKER,
    forecast: DurationForecast | None = None,
    mark: str = "mptune",
) -> Dispatcher:
    """The dispatcher for trials of this shape: in this process, on Ray here, or at `address`.

    The names of its gangs on a cluster begin with `mark`.

    `forecast` predicts how long trials take; the order in which they start depends on it.

    Raises:
        DispatchError: Ray cannot be started or reached.
    """
    if local:
        from mptune.dispatch.local import LocalDispatcher

        return LocalDispatcher(runtime)
    from mptune.dispatch.ray_dispatcher import RayDispatcher

    return RayDispatcher(resources, runtime=runtime, address=address, forecast=forecast, mark=mark)


def left_behind(address: str, mark: str) -> list[Leftover]:
    """What a run of that mark has on the Ray cluster at `address`: gangs, and wished machines.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch.leftovers import find as ask

    return ask(address, mark)


def clear_away(address: str, mark: str, found: Iterable[Leftover]) -> None:
    """Remove them: end those gangs, with their processes, and wish for nothing.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch.leftovers import remove as ask

    ask(address, mark, {one.id for one in found})


def is_reachable(address: str) -> bool:
    """Whether anything listens there."""
    from mptune.dispatch.leftovers import is_reachable as ask

    return ask(address)


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
    return [refusal(shape, nodes) for shape in shapes if not FreeResources.of(nodes).fits(shape)]
