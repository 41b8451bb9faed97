"""What a launcher is: a profile (`launchers/*.yaml`) that says where a search's trials run."""

from __future__ import annotations

from abc import abstractmethod

from mptune.spec import Section


class Launcher(Section):
    """A place to run a search."""

    kind: str

    @abstractmethod
    def ray_address(self) -> str | None:
        """The Ray cluster to attach to, or None to start one on this machine."""
