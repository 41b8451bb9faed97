"""What a tracker is: it gets the numbers of a search while it runs, and its report at the end.

A search is a group; each of its trials is a run, and so is the search itself (`SEARCH`). A tracker
is called in a thread of its own, one call after the other. What it raises is said once; it is
called again all the same, as a server may come back.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import PrivateAttr

from mptune.spec.schema import Plugin

Scalar: TypeAlias = str | int | float | bool

Axis: TypeAlias = Literal["step", "masked"]
"""What a series of numbers runs over: optimizer steps, or the number of masked positions M."""


Part: TypeAlias = Literal["start", "train", "score", "end"]
"""What a run does from now on: wait for its workers and build the model, train, be scored."""


@dataclass(frozen=True)
class Group:
    """A search as trackers see it.

    Attributes:
        name: of the spec.
        id: unlike that of any other search; the same after a resume.
        folder: the run directory.
    """

    name: str
    id: str
    folder: Path


@dataclass(frozen=True)
class TrackedRun:
    """One trial, or the search as a whole.

    Attributes:
        key: unlike that of any other run of its search, e.g. `search-0007`.
        label: policy and size in one line.
        config: what was chosen before it began: dotted name -> value.
    """

    key: str
    label: str = ""
    config: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Key and label in one line."""
        return f"{self.key} {self.label}".strip()


SEARCH = "search"
"""Key of the run that stands for the whole search."""


class Tracker(Plugin):
    """Base of all trackers. Each method may be called for a run of an earlier driver, too.

    Attributes of the class:
        PACKAGE: the package to import.
        EXTRA: name of the extra that installs it; default that of the package.
    """

    PACKAGE: ClassVar[str]
    EXTRA: ClassVar[str] = ""
    _now_ns: int = PrivateAttr(default_factory=time.time_ns)
    """When that happened which a method is called for, nanoseconds since 1970."""

    @property
    def extra(self) -> str:
        """Its name, also after `mptune[...]`."""
        return self.EXTRA or self.PACKAGE

    def check(self) -> None:
        """Check that its package is installed, without importing it.

        Raises:
            ValueError: it is not.
        """
        with suppress(ModuleNotFoundError):  # a package around it
            if find_spec(self.PACKAGE) is not None:
                return
        raise ValueError(
            f"needs a package that is not installed: pip install 'mptune[{self.extra}]'"
        )

    @abstractmethod
    def start(self, group: Group) -> None:
        """Connect; called again before the next call if it raised."""

    @abstractmethod
    def trial(self, run: TrackedRun) -> None:
        """A run begins or goes on."""

    def at(self, now_ns: int) -> None:
        """The next method is called for what happened then, nanoseconds since 1970."""
        self._now_ns = now_ns

    def part(self, run: TrackedRun, name: Part) -> None:
        """A part of a run begins; the one before has ended."""
        return

    @abstractmethod
    def event(self, run: TrackedRun, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Numbers of a run at one point of an axis; after a resume, steps may come again."""

    @abstractmethod
    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """A run has ended for now, with this state; a paused or interrupted one may go on."""

    def artifact(self, run: TrackedRun, path: Path) -> None:
        """Keep a file with a run."""

    @abstractmethod
    def end(self) -> None:
        """Send what is left; the driver ends."""


class LoggedRuns(Tracker):
    """Base of trackers whose package has one object for each run, with `log` and `finish`.

    It is made by `_run`, with an id of those of the search and the trial, so that it can go on.
    """

    _group: Group = PrivateAttr()
    _runs: dict[str, Any] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def _run(self, run: TrackedRun) -> Any:
        """The object of this run, kept in `_runs` until the run has ended."""

    def start(self, group: Group) -> None:
        """Each run connects by itself."""
        self._group = group

    def trial(self, run: TrackedRun) -> None:
        """The run begins or goes on in the tracker, too."""
        self._run(run)

    def event(self, run: TrackedRun, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """The axis is logged, too: the own steps of a run cannot go back after a resume."""
        self._run(run).log({axis: at, **values})

    def end(self) -> None:
        """Finish all runs; those that go on later have the same ids."""
        while self._runs:
            self._runs.popitem()[1].finish()
