"""Who starts next: first come, first served, with a reservation for the oldest that must wait.

Pure: from what the cluster holds and what waits, decide. Nothing here knows of Ray or of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor

from mptune.spec import Resources

EPSILON = 1e-4
"""Ray counts resources in steps of this size."""


@dataclass(frozen=True)
class Shape:
    """What a gang takes: gangs are reused by trials of the same shape."""

    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Resources) -> Shape:
        return cls(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)

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

    def slots(self, shape: Shape) -> int:
        """How many workers of this shape it takes."""
        by_cpu = floor((self.cpus + EPSILON) / shape.cpus)
        by_gpu = floor((self.gpus + EPSILON) / shape.gpus) if shape.gpus else by_cpu
        return max(0, min(by_cpu, by_gpu))

    def less(self, shape: Shape, workers: int) -> Node:
        """What is left beside so many workers; never below nothing."""
        return replace(
            self,
            cpus=max(0.0, self.cpus - workers * shape.cpus),
            gpus=max(0.0, self.gpus - workers * shape.gpus),
        )


Placement = tuple[str, ...]
"""One node id per worker."""


@dataclass(frozen=True)
class Held:
    """A gang that stands: where it is, and whether it waits for a trial."""

    gang: str
    shape: Shape
    placement: Placement
    idle: bool


@dataclass(frozen=True)
class Start:
    """Start the trial, on an idle gang or on a new one at `placement`."""

    number: int
    gang: str | None = None
    placement: Placement = ()


@dataclass(frozen=True)
class Retire:
    """Give up an idle gang: its place is wanted."""

    gang: str


@dataclass(frozen=True)
class Refuse:
    """The trial would not fit even if the cluster were empty."""

    number: int
    detail: str


Decision = Start | Retire | Refuse


def place(nodes: Iterable[Node], shape: Shape) -> Placement | None:
    """One node if one takes the whole gang, else as few as possible; None if it does not fit."""
    roomiest = sorted(nodes, key=lambda n: -n.slots(shape))
    spread = [n.id for n in roomiest for _ in range(n.slots(shape))]
    return tuple(spread[: shape.workers]) if len(spread) >= shape.workers else None


def without(nodes: Iterable[Node], shape: Shape, placement: Placement) -> list[Node]:
    """What is left beside a gang at this place."""
    taken = Counter(placement)
    return [n.less(shape, taken[n.id]) for n in nodes]


def free(total: Sequence[Node], held: Iterable[Held]) -> list[Node]:
    """What the gangs leave of the cluster."""
    left = list(total)
    for gang in held:
        left = without(left, gang.shape, gang.placement)
    return left


def how_many(nodes: Sequence[Node], shape: Shape) -> int:
    """How many gangs of this shape fit at once."""
    count = 0
    while placement := place(nodes, shape):
        nodes = without(nodes, shape, placement)
        count += 1
    return count


def admit(
    queue: Sequence[tuple[int, Shape]], held: Sequence[Held], total: Sequence[Node]
) -> list[Decision]:
    """What to do now, in this order; `queue` is oldest first, `held` longest idle first.

    The oldest trial that does not fit reserves the place that will be free for it first; younger
    ones start beside that reservation or wait. So a large trial is never starved by small ones.
    """
    decisions: list[Decision] = []
    held = list(held)
    reserved: tuple[Shape, Placement] | None = None
    for number, shape in queue:
        if place(total, shape) is None:
            decisions.append(Refuse(number, _refusal(shape, total)))
            continue
        plan = _plan(number, shape, held, total, reserved)
        if plan is None:
            reserved = reserved or (shape, _reservation(shape, held, total))
            continue
        decisions += plan
        held = _after(plan, shape, held)
    return decisions


def _plan(
    number: int,
    shape: Shape,
    held: Sequence[Held],
    total: Sequence[Node],
    reserved: tuple[Shape, Placement] | None,
) -> list[Decision] | None:
    """How this trial starts now: on an idle gang, in free room, or in place of idle gangs.

    The gang that worked last goes on, so that its caches are warm and others can be given up.
    """
    idle = [h for h in held if h.idle]
    for gang in reversed(idle):
        if gang.shape == shape and _is_beside(gang, held, total, reserved):
            return [Start(number, gang=gang.gang)]
    for give_up in range(len(idle) + 1):
        retired = idle[:give_up]
        room = free(total, [h for h in held if h not in retired])
        if reserved:
            room = without(room, *reserved)
        if placement := place(room, shape):
            in_the_way = [r for r in retired if set(r.placement) & set(placement)]
            return [*(Retire(r.gang) for r in in_the_way), Start(number, placement=placement)]
    return None


def _is_beside(
    gang: Held,
    held: Sequence[Held],
    total: Sequence[Node],
    reserved: tuple[Shape, Placement] | None,
) -> bool:
    """Whether an idle gang can go on without taking from the reservation."""
    if reserved is None:
        return True
    room = without(free(total, [h for h in held if h != gang]), *reserved)
    wanted = Counter(gang.placement)
    return all(n.slots(gang.shape) >= wanted[n.id] for n in room)


def _reservation(shape: Shape, held: Sequence[Held], total: Sequence[Node]) -> Placement:
    """Where the waiting trial will go: where most is free already, by what fits when all end."""
    room = {n.id: n.slots(shape) for n in free(total, [h for h in held if not h.idle])}
    spread = [
        n.id
        for n in sorted(total, key=lambda n: (n.slots(shape) < shape.workers, -room[n.id]))
        for _ in range(n.slots(shape))
    ]
    return tuple(spread[: shape.workers])


def _after(plan: Sequence[Decision], shape: Shape, held: Sequence[Held]) -> list[Held]:
    """The gangs once the plan is carried out."""
    gone = {d.gang for d in plan if isinstance(d, Retire)}
    start = next(d for d in plan if isinstance(d, Start))
    kept = [replace(h, idle=h.idle and h.gang != start.gang) for h in held if h.gang not in gone]
    if start.gang is None:
        kept.append(Held(f"for trial {start.number}", shape, start.placement, idle=False))
    return kept


def _refusal(shape: Shape, total: Sequence[Node]) -> str:
    there = ", ".join(f"{n.cpus:g} CPU and {n.gpus:g} GPU" for n in total) or "no node"
    return f"the trial needs {shape}; the cluster holds {there}: lower resources or add nodes"
