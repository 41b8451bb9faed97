"""Where trials run. Importing this does not import Ray; making a Ray dispatcher does."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from mptune.dispatch.admission import refusal
from mptune.dispatch.base import WORKER, Dispatcher, DurationForecast
from mptune.dispatch.placement import FreeResources, Shape
from mptune.errors import InputError
from mptune.paths import RunDirectory, read_json, write_json
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
    run: RunDirectory | None = None,
) -> Dispatcher:
    """The dispatcher for trials of this shape: in this process, on Ray here, or at `address`.

    The address of a cluster is stored in `run`, whose gangs are known by their names.
    `forecast` predicts how long trials take; the order in which they start depends on it.

    Raises:
        DispatchError: Ray cannot be started or reached.
    """
    if local:
        from mptune.dispatch.local import LocalDispatcher

        return LocalDispatcher(runtime)
    from mptune.dispatch.ray_dispatcher import RayDispatcher

    mark = {} if run is None else {"mark": gang_prefix(run)}
    made = RayDispatcher(resources, runtime=runtime, address=address, forecast=forecast, **mark)
    if run is not None and (cluster := made.address()):
        store_address(run, cluster)
    return made


def gang_prefix(run: RunDirectory) -> str:
    """Prefix of the names of the run's gangs; a copy of the directory has another one."""
    place = f"{socket.gethostname()}:{run.root.resolve()}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"mptune/{run.root.resolve().name}-{digest}"


def store_address(run: RunDirectory, address: str) -> None:
    """Store the cluster's address; called before the first gang is created there."""
    write_json(run.cluster, {"address": address, "mark": gang_prefix(run)})


def last_cluster(run: RunDirectory) -> str | None:
    """Address of the last driver's cluster if it answers; None without one.

    None also in a copy of the directory, on this or another machine: it must not end the gangs of
    the original.
    """
    try:
        stored = read_json(run.cluster)
        address: str = stored["address"]
        is_original = stored["mark"] == gang_prefix(run)
    except (KeyError, TypeError):
        return None
    return address if is_original and is_reachable(address) else None


def refuse_local(resources: Resources) -> None:
    """Raise if trials ask for GPUs that this process could not give them.

    Raises:
        InputError: this machine has no GPU.
    """
    from mptune.dispatch import devices

    if any(gang.gpus_per_worker for gang in resources.gangs()) and not devices.gpus():
        raise InputError(
            "--local: resources.gpus_per_worker asks for GPUs, and this machine has none; "
            "set it to 0 to train on the CPU"
        )


@contextmanager
def orphans(address: str, mark: str) -> Iterator[list[Orphan]]:
    """Gangs and requests for machines that a dead driver of this mark has left at `address`.

    The connection to the cluster, which removing one needs, is open inside the `with` block.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    from mptune.dispatch import claims
    from mptune.dispatch.cluster import ClusterConnection

    with closing(ClusterConnection(address)):
        yield claims.find_orphans(mark)


def is_reachable(address: str) -> bool:
    """Whether a server listens at `HOST:PORT`; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


def misfits(resources: Resources, address: str | None) -> list[str]:
    """Why some gangs never fit in the Ray cluster at `address`, or on this machine, one line each.

    Raises:
        DispatchError: the cluster cannot be reached.
    """
    if address is None:
        from mptune.dispatch import devices

        nodes = [devices.here(resources)[0]]
    else:
        from mptune.dispatch.cluster import ClusterConnection

        with closing(ClusterConnection(address)) as cluster:
            nodes = cluster.nodes()
    shapes = dict.fromkeys(Shape.of(gang) for gang in resources.gangs())
    return [refusal(shape, nodes) for shape in shapes if not FreeResources.of(nodes).fits(shape)]
