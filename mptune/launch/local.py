"""This machine."""

from __future__ import annotations

from typing import Literal

from mptune.launch.base import Launcher


class Local(Launcher):
    """Start Ray on this machine for the time of the search; nothing listens beyond loopback.

    Source: `ray.init` with the dashboard off.
    """

    kind: Literal["local"] = "local"

    def ray_address(self) -> None:
        return None
