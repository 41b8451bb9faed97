"""Room for gangs: what a gang takes, what a node holds, and where a gang goes.

Pure: nothing here knows of Ray or of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import floor
from typing import Self

from mptune.spec import Resources

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
    """CPUs and GPUs of one machine: all of them, or those that are free."""

    id: str
    cpus: float
    gpus: float = 0

    def slots(self, cpus: float, gpus: float) -> int:
        """How many workers that take so much each fit."""
        by_cpu = floor((self.cpus + EPSILON) / cpus)
        by_gpu = floor((self.gpus + EPSILON) / gpus) if gpus else by_cpu
        return max(0, min(by_cpu, by_gpu))

    def plus(self, shape: Shape, workers: int) -> Node:
        """With so many workers' room more; less, and even below nothing, if negative."""
        return Node(self.id, self.cpus + workers * shape.cpus, self.gpus + workers * shape.gpus)

    def common(self, other: Node) -> Node:
        """What is free in both."""
        return Node(self.id, min(self.cpus, other.cpus), min(self.gpus, other.gpus))


@dataclass
class _Slots:
    """Workers of one shape that fit on each node, and on all."""

    of: dict[str, int]
    total: int


@dataclass
class Room:
    """The free room of a cluster as gangs come and go; asking again is cheap."""

    _nodes: dict[str, Node]
    _slots: dict[tuple[float, float], _Slots] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Self:
        return cls({node.id: node for node in nodes})

    def copy(self) -> Room:
        return Room(
            dict(self._nodes), {k: _Slots(dict(s.of), s.total) for k, s in self._slots.items()}
        )

    def common(self, other: Room) -> Room:
        """What is free in both."""
        return Room({i: node.common(other._nodes[i]) for i, node in self._nodes.items()})

    def meet(self, one: Room, other: Room, nodes: Iterable[str]) -> None:
        """Follow what changed on these nodes in the two rooms that this one is common to."""
        for node in set(nodes) & self._nodes.keys():
            self._nodes[node] = one._nodes[node].common(other._nodes[node])
            self._recount(node)

    def slots(self, shape: Shape) -> int:
        """How many workers of this shape fit."""
        return self._slots_of(shape).total

    def fits(self, shape: Shape) -> bool:
        return self.slots(shape) >= shape.workers

    def place(self, shape: Shape) -> Placement | None:
        """The tightest node that takes the whole gang, else as few as possible; None: no room."""
        if not self.fits(shape):
            return None
        slots = self._slots_of(shape).of
        return tuple(_spread(slots, shape.workers))

    def holds(self, shape: Shape, placement: Placement) -> bool:
        """Whether a gang fits at this very place."""
        slots = self._slots_of(shape).of
        return all(slots.get(node, 0) >= n for node, n in Counter(placement).items())

    def take(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, -1)

    def give(self, shape: Shape, placement: Placement) -> None:
        self._add(shape, placement, 1)

    def _add(self, shape: Shape, placement: Placement, sign: int) -> None:
        """A node that has left the cluster has nothing to take or give."""
        for node, workers in Counter(placement).items():
            if node in self._nodes:
                self._nodes[node] = self._nodes[node].plus(shape, sign * workers)
                self._recount(node)

    def _recount(self, node: str) -> None:
        for (cpus, gpus), slots in self._slots.items():
            now = self._nodes[node].slots(cpus, gpus)
            slots.total += now - slots.of[node]
            slots.of[node] = now

    def _slots_of(self, shape: Shape) -> _Slots:
        key = (shape.cpus, shape.gpus)
        if key not in self._slots:
            of = {i: node.slots(*key) for i, node in self._nodes.items()}
            self._slots[key] = _Slots(of, sum(of.values()))
        return self._slots[key]


def _spread(slots: dict[str, int], workers: int) -> Iterator[str]:
    """The roomiest nodes, and for what then fits on one node the tightest."""
    roomiest = iter(sorted(slots, key=lambda node: -slots[node]))
    used: set[str] = set()
    while workers:
        enough = [node for node, n in slots.items() if n >= workers and node not in used]
        node = min(enough, key=slots.__getitem__) if enough else next(roomiest)
        used.add(node)
        yield from [node] * min(workers, slots[node])
        workers -= min(workers, slots[node])
