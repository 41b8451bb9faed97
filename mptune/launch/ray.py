"""A Ray cluster that is already running."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mptune.launch.base import Launcher


class ExistingRay(Launcher):
    """Attach to a running Ray cluster; its nodes need mptune and a shared run directory.

    Source: `ray start --head`, `ray start --address`.
    """

    kind: Literal["ray"] = "ray"
    address: str = Field("auto", description="HOST:PORT of the head node, or auto")

    def ray_address(self) -> str:
        return self.address
