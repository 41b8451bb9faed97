"""Room for gangs: what a gang takes, what a node holds, and where a gang goes.

Pure: nothing here knows of Ray or of time.

Shapes: N nodes of the cluster, R resources of each (CPUs, GPUs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mptune.spec.schema import Resources

EPSILON = 1e-4
"""Ray counts resources in steps of this size."""

Placement = tuple[str, ...]
"""One node id per worker."""


@dataclass(frozen=True)
class Shape:
    """What a gang takes: gangs are reused by trials of the same shape."""

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
        many = "s" if self.workers > 1 else ""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker{many} of {self.cpus:g} CPU{gpus}"


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of one machine, all of them."""

    id: str
    cpus: float
    gpus: float = 0


@dataclass
class _Slots:
    """Workers of one shape that fit on each node, and on all."""

    of_N: NDArray[np.int64]
    total: int


@dataclass
class Room:
    """The free room of a cluster as gangs come and go; asking again is cheap."""

    _rows: Mapping[str, int]
    _free_NR: NDArray[np.float64]
    _slots: dict[tuple[float, float], _Slots] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Self:
        nodes = list(nodes)
        free_NR = np.array([(node.cpus, node.gpus) for node in nodes], dtype=float)
        return cls({node.id: row for row, node in enumerate(nodes)}, free_NR.reshape(-1, 2))

    def copy(self) -> Room:
        slots = {key: _Slots(s.of_N.copy(), s.total) for key, s in self._slots.items()}
        return Room(self._rows, self._free_NR.copy(), slots)

    def common(self, other: Room) -> Room:
        """What is free in both."""
        return Room(self._rows, np.minimum(self._free_NR, other._free_NR))

    def slots(self, shape: Shape) -> int:
        """How many workers of this shape fit."""
        return self._slots_of(shape).total

    def fits(self, shape: Shape) -> bool:
        return self.slots(shape) >= shape.workers

    def place(self, shape: Shape) -> Placement | None:
        """The tightest node that takes the whole gang, else as few as possible; None: no room."""
        if not self.fits(shape):
            return None
        ids = list(self._rows)
        return tuple(ids[row] for row in _spread(self._slots_of(shape).of_N, shape.workers))

    def holds(self, shape: Shape, placement: Placement) -> bool:
        """Whether a gang fits at this very place."""
        slots_N = self._slots_of(shape).of_N
        there = [(self._rows.get(node), workers) for node, workers in _counted(placement)]
        return all(row is not None and slots_N[row] >= workers for row, workers in there)

    def take(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, -1)

    def give(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, 1)

    def _add(self, shape: Shape, placement: Placement, sign: int) -> None:
        """A node that has left the cluster has nothing to take or give."""
        for node, workers in _counted(placement):
            row = self._rows.get(node)
            if row is not None:
                self._free_NR[row, 0] += sign * workers * shape.cpus
                self._free_NR[row, 1] += sign * workers * shape.gpus
                self._recount(row)

    def _recount(self, row: int) -> None:
        for key, slots in self._slots.items():
            now = int(_fitting(self._free_NR[row : row + 1], *key)[0])
            slots.total += now - int(slots.of_N[row])
            slots.of_N[row] = now

    def _slots_of(self, shape: Shape) -> _Slots:
        key = (shape.cpus, shape.gpus)
        if key not in self._slots:
            of_N = _fitting(self._free_NR, *key)
            self._slots[key] = _Slots(of_N, int(of_N.sum()))
        return self._slots[key]


@lru_cache(maxsize=4096)
def _counted(placement: Placement) -> tuple[tuple[str, int], ...]:
    """How many workers are on each node."""
    return tuple(Counter(placement).items())


def _fitting(free_NR: NDArray[np.float64], cpus: float, gpus: float) -> NDArray[np.int64]:
    """How many workers that take so much each fit on each node; none where too much is taken."""
    fit_N = (free_NR[:, 0] + EPSILON) // cpus
    if gpus:
        fit_N = np.minimum(fit_N, (free_NR[:, 1] + EPSILON) // gpus)
    return np.maximum(fit_N, 0).astype(np.int64)


def _spread(slots_N: NDArray[np.int64], workers: int) -> Iterator[int]:
    """The roomiest nodes, and for what then fits on one node the tightest; rows."""
    left_N = slots_N.copy()
    while workers:
        enough_N = left_N >= workers
        tightest = np.where(enough_N, left_N, np.iinfo(np.int64).max).argmin()
        row = int(tightest if enough_N.any() else left_N.argmax())
        here = min(workers, int(left_N[row]))
        left_N[row] = 0
        yield from [row] * here
        workers -= here
