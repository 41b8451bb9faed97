"""Where trials run. Importing this does not import Ray; making a Ray dispatcher does."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import closing
from typing import TYPE_CHECKING

from mptune.dispatch.admission import refusal
from mptune.dispatch.base import WORKER, Dispatcher, DurationForecast
from mptune.dispatch.placement import FreeResources, Shape
from mptune.spec.schema import Resources

if TYPE_CHECKING:
    from mptune.dispatch.claims import Orphan

REACH_TIMEOUT_S = 3.0


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

    The names of its gangs on a cluster begin with `mark`. `forecast` predicts how long trials
    take; the order in which they start depends on it.

    Raises:
        DispatchError: Ray cannot be started or reached.
    """
    if local:
        from mptune.dispatch.local import LocalDispatcher

        return LocalDispatcher(runtime)
    from mptune.dispatch.ray_dispatcher import RayDispatcher

    return RayDispatcher(resources, runtime=runtime, address=address, forecast=forecast, mark=mark)


def find_orphans(address: str, mark: str) -> list[Orphan]:
    """Gangs and requests for machines that a dead driver of this mark has left at `address`.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch import claims
    from mptune.dispatch.cluster import ClusterConnection

    with closing(ClusterConnection(address)):
        return claims.find_orphans(mark)


def remove_orphans(address: str, mark: str, ids: Collection[str]) -> None:
    """Remove those with these ids: end the gangs with their processes, withdraw the requests.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch import claims
    from mptune.dispatch.cluster import ClusterConnection

    with closing(ClusterConnection(address)):
        for orphan in claims.find_orphans(mark):
            if orphan.id in ids:
                orphan.remove()


def is_reachable(address: str) -> bool:
    """Whether a server listens at `HOST:PORT`; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


def misfits(resources: Resources, address: str) -> list[str]:
    """Why some gangs never fit in the Ray cluster at `address`, one line each.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch.cluster import ClusterConnection

    with closing(ClusterConnection(address)) as cluster:
        nodes = cluster.nodes()
    shapes = dict.fromkeys(Shape.of(gang) for gang in resources.gangs())
    return [refusal(shape, nodes) for shape in shapes if not FreeResources.of(nodes).fits(shape)]
