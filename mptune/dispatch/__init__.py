"""Where trials run. Importing this does not import Ray; making a Ray dispatcher does."""

from __future__ import annotations

from mptune.dispatch.base import Dispatcher
from mptune.dispatch.runtime import WORKER
from mptune.spec import Resources


def make(
    resources: Resources, *, local: bool, address: str | None, runtime: str = WORKER
) -> Dispatcher:
    """The dispatcher for trials of this shape: in this process, on Ray here, or at `address`.

    Raises:
        DispatchError: Ray cannot be started or reached.
    """
    if local:
        from mptune.dispatch.local import LocalDispatcher

        return LocalDispatcher(runtime)
    from mptune.dispatch.ray_dispatcher import RayDispatcher

    return RayDispatcher(resources, runtime=runtime, address=address)
