"""Where gangs fit: what a gang takes, what nodes have, and what is used of them.

Pure: nothing here uses Ray or reads a clock.

Shapes: N nodes of the cluster, R resources of each (CPUs, GPUs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mptune.errors import plural
from mptune.spec.schema import Resources

EPSILON = 1e-4
"""Ray counts resources in steps of this size."""

BLOCKED_S = 30.0
"""How long nodes are avoided on which Ray had no room although they looked free."""

Placement = tuple[str, ...]
"""One node id per worker."""


@dataclass(frozen=True)
class Shape:
    """What a gang takes. A trial can run on any idle gang of its shape."""

    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Resources) -> Shape:
        return cls(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)

    @property
    def weight(self) -> float:
        """GPUs of the whole gang; its CPUs where it has none."""
        return self.workers * (self.gpus or self.cpus)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{plural(self.workers, 'worker')} of {self.cpus:g} CPU{gpus}"


@dataclass(frozen=True)
class ClusterNode:
    """CPUs and GPUs of one machine, either all of them or those that are unused."""

    id: str
    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class PlacedGang:
    """A gang as admission sees it; resources that other programs use are passed the same way."""

    gang: str
    shape: Shape
    placement: Placement
    idle: bool
    ends: float | None = None
    """When its trial is predicted to end, in seconds; None if not known, or idle."""
    ours: bool = True
    """False if another program uses the resources: no reservation may count on their release."""


@dataclass
class FreeResources:
    """Unused CPUs and GPUs of a cluster, updated as gangs come and go.

    The workers that fit on each node are cached per worker size, so that repeated questions about
    the same shape are cheap.
    """

    _rows: Mapping[str, int]
    _free_NR: NDArray[np.float64]
    _workers_N: dict[tuple[float, float], NDArray[np.int64]] = field(default_factory=dict)
    """(CPUs, GPUs) of a worker -> how many of them fit on each node."""

    @classmethod
    def of(cls, nodes: Iterable[ClusterNode], held: Iterable[PlacedGang] = ()) -> Self:
        """What these gangs leave of the nodes."""
        nodes = list(nodes)
        free_NR = np.array([(node.cpus, node.gpus) for node in nodes], dtype=float)
        free = cls({node.id: row for row, node in enumerate(nodes)}, free_NR.reshape(-1, 2))
        for gang in held:
            free.take(gang.shape, gang.placement)
        return free

    def copy(self) -> FreeResources:
        cached = {size: workers_N.copy() for size, workers_N in self._workers_N.items()}
        return FreeResources(self._rows, self._free_NR.copy(), cached)

    def common(self, other: FreeResources) -> FreeResources:
        """What is free in both."""
        return FreeResources(self._rows, np.minimum(self._free_NR, other._free_NR))

    def count_workers(self, shape: Shape) -> int:
        """How many workers of this shape fit in all."""
        return int(self._fitting(shape).sum())

    def fits(self, shape: Shape) -> bool:
        return self.count_workers(shape) >= shape.workers

    def place(self, shape: Shape) -> Placement | None:
        """The fullest node that takes the whole gang, else as few nodes as possible; or None."""
        if not self.fits(shape):
            return None
        ids = list(self._rows)
        return tuple(ids[row] for row in _spread(self._fitting(shape), shape.workers))

    def fits_at(self, shape: Shape, placement: Placement) -> bool:
        """Whether the gang fits on exactly these nodes."""
        fitting_N = self._fitting(shape)
        wanted = [(self._rows.get(node), workers) for node, workers in _per_node(placement)]
        return all(row is not None and fitting_N[row] >= workers for row, workers in wanted)

    def by_node(self) -> dict[str, tuple[float, float]]:
        """Node id -> (CPUs, GPUs)."""
        free_NR = np.where(self._free_NR > EPSILON, self._free_NR, 0.0).tolist()
        return {node: (free_NR[row][0], free_NR[row][1]) for node, row in self._rows.items()}

    def take(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, -1)

    def give_back(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, 1)

    def _add(self, shape: Shape, placement: Placement, sign: int) -> None:
        """Nodes that have left the cluster are ignored."""
        for node, workers in _per_node(placement):
            row = self._rows.get(node)
            if row is None:
                continue
            self._free_NR[row] += sign * workers * np.array((shape.cpus, shape.gpus))
            for size, workers_N in self._workers_N.items():
                workers_N[row] = _count_fitting(self._free_NR[row : row + 1], *size)[0]

    def _fitting(self, shape: Shape) -> NDArray[np.int64]:
        size = (shape.cpus, shape.gpus)
        if size not in self._workers_N:
            self._workers_N[size] = _count_fitting(self._free_NR, *size)
        return self._workers_N[size]


@lru_cache(maxsize=4096)
def _per_node(placement: Placement) -> tuple[tuple[str, int], ...]:
    """How many workers are on each node."""
    return tuple(Counter(placement).items())


def _count_fitting(free_NR: NDArray[np.float64], cpus: float, gpus: float) -> NDArray[np.int64]:
    """How many workers of this size fit on each node; 0 where more is taken than there is."""
    fit_N = (free_NR[:, 0] + EPSILON) // cpus
    if gpus:
        fit_N = np.minimum(fit_N, (free_NR[:, 1] + EPSILON) // gpus)
    return np.maximum(fit_N, 0).astype(np.int64)


def _spread(fitting_N: NDArray[np.int64], workers: int) -> Iterator[int]:
    """A row for each worker: the emptiest nodes first, and the fullest that takes the rest."""
    left_N = fitting_N.copy()
    while workers:
        enough_N = left_N >= workers
        fullest = np.where(enough_N, left_N, np.iinfo(np.int64).max).argmin()
        row = int(fullest if enough_N.any() else left_N.argmax())
        here = min(workers, int(left_N[row]))
        left_N[row] = 0
        yield from [row] * here
        workers -= here


@dataclass
class OtherUsage:
    """What other programs use of a shared cluster. Times are in seconds from any origin."""

    _now: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Node id -> (CPUs, GPUs)."""
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)
    _blocked: dict[str, float] = field(default_factory=dict)
    """Node id -> until when no gang is planned there."""

    def update(
        self,
        total: Sequence[ClusterNode],
        unused: Mapping[str, ClusterNode],
        ours: Iterable[PlacedGang],
        now: float,
    ) -> None:
        """Others use what is neither unused nor held by `ours`, gangs that Ray has placed.

        All of a node counts as used while it is blocked, or missing in `unused`.
        """
        self._blocked = {node: until for node, until in self._blocked.items() if until > now}
        # What nothing uses of a node is a gang of one worker there.
        idle = [
            PlacedGang("", Shape(1, node.cpus, node.gpus), (node.id,), idle=True)
            for node in unused.values()
            if node.id not in self._blocked
        ]
        self._before, self._now = self._now, FreeResources.of(total, [*ours, *idle]).by_node()

    def block(self, nodes: Collection[str], now: float, seconds: float = BLOCKED_S) -> None:
        """Plan no gang on these nodes for a while, from the next update on."""
        self._blocked |= dict.fromkeys(nodes, now + seconds)

    def held(self) -> Iterator[PlacedGang]:
        """The usage as gangs whose end is not known.

        What was not seen by the update before may be what a gang of ours releases or has just
        taken: it counts as ours, so that a reservation may count on its release.
        """
        for node, (cpus, gpus) in self._now.items():
            before_cpus, before_gpus = self._before.get(node, (0.0, 0.0))
            lasting = Shape(1, min(cpus, before_cpus), min(gpus, before_gpus))
            passing = Shape(1, cpus - lasting.cpus, gpus - lasting.gpus)
            for name, shape, ours in (("others", lasting, False), ("passing", passing, True)):
                if shape.cpus or shape.gpus:
                    yield PlacedGang(f"{name} on {node}", shape, (node,), idle=False, ours=ours)

    def lasting(self) -> list[Shape]:
        """What others used at both of the last two updates."""
        return [held.shape for held in self.held() if not held.ours]
