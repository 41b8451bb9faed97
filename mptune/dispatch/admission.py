"""Which trial starts next: first come, first served, with a reservation for the first that waits.

Pure: decisions depend only on what the cluster has, the queue, the gangs and the time.

A trial counts as older the more GPUs it takes and the longer it is predicted to run: a place for a
large gang is hard to find, and a long trial that starts late delays the end of a search. That head
start is bounded by a few trials' durations, so that every trial starts at some point. The first
trial that does not fit reserves the place that will be free for it first, at the time when the
gangs there are predicted to end. Other trials start beside that reservation, or in it if they are
predicted to end before its time (EASY backfilling, Lifka 1995,
https://doi.org/10.1007/3-540-60153-8_35). Ray is asked for a gang only once it is admitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean
from typing import Literal

from mptune.dispatch.placement import ClusterNode, FreeResources, PlacedGang, Placement, Shape
from mptune.status import Wait

HEAD_START_SIZE = 3.0
"""Head start of the largest gang in the queue, in mean trial durations; less for smaller gangs."""

HEAD_START_DURATION = 3.0
"""Head start of each trial, in its own predicted duration."""


@dataclass(frozen=True)
class WaitingTrial:
    """A trial in the queue. Times are in seconds from any origin."""

    number: int
    shape: Shape
    since: float = 0.0
    seconds: float | None = None
    """Its predicted duration; None if not known."""


@dataclass(frozen=True)
class Start:
    """Start the trial, on the idle gang of that name or on a new one at `placement`."""

    number: int
    gang: str | None = None
    placement: Placement = ()


@dataclass(frozen=True)
class Retire:
    """End an idle gang: its place is needed."""

    gang: str


@dataclass(frozen=True)
class Refuse:
    """The trial would not fit even if the cluster were empty."""

    number: int
    detail: str


Decision = Start | Retire | Refuse

WaitKind = Literal["next", "reserved", "no_room", "behind", "no_such_node"]


def in_turn(queue: Iterable[WaitingTrial]) -> list[WaitingTrial]:
    """The queue in the order of its turn: the oldest trial first, each with its head start.

    A trial of unknown duration counts as a mean one.
    """
    waiting = list(queue)
    known = [w.seconds for w in waiting if w.seconds is not None]
    mean_s = fmean(known) if known else 0.0
    largest = max((w.shape.weight for w in waiting), default=0.0)

    def turn(w: WaitingTrial) -> tuple[float, int]:
        for_size_s = HEAD_START_SIZE * mean_s * w.shape.weight / largest
        for_duration_s = HEAD_START_DURATION * (mean_s if w.seconds is None else w.seconds)
        return w.since - for_size_s - for_duration_s, w.number

    return sorted(waiting, key=turn)


def trial_capacity(
    nodes: Iterable[ClusterNode], in_flight: Sequence[Shape], smallest: Shape
) -> int:
    """How many trials can be in flight: those that are, and more where these leave resources.

    It depends on nothing else, so that a search that is run again asks for the same trials.
    """
    free = FreeResources.of(nodes)
    for shape in in_flight:
        placement = free.place(shape)
        if placement is None:
            return len(in_flight)
        free.take(shape, placement)
    return len(in_flight) + free.count_workers(smallest) // smallest.workers


def admit(
    queue: Iterable[WaitingTrial],
    held: Sequence[PlacedGang],
    total: Sequence[ClusterNode],
    now: float = 0.0,
) -> list[Decision]:
    """What to do now, in this order; `held` is longest idle first."""
    return _Round.of(held, total, now).admit(queue, total)


def refusal(shape: Shape, total: Iterable[ClusterNode]) -> str:
    """Why a gang of this shape does not fit even in the empty cluster."""
    kinds = Counter((node.cpus, node.gpus) for node in total)
    nodes = ", ".join(
        f"{f'{count} nodes of ' if count > 1 else ''}{cpus:g} CPU and {gpus:g} GPU"
        for (cpus, gpus), count in kinds.items()
    )
    return (
        f"the trial needs {shape}; the cluster holds {nodes or 'no node'}: "
        "lower resources or add nodes"
    )


@dataclass
class _Round:
    """One round of decisions.

    `free` is free now; `emptied` would be free if all idle gangs were ended.
    """

    now: float
    busy: list[PlacedGang]
    idle: list[PlacedGang]
    free: FreeResources
    emptied: FreeResources
    reservation: _Reservation | None = None
    waits: dict[int, Wait] = field(default_factory=dict)
    """Why each trial waits, in the order of their turn."""
    _without_place: set[tuple[Shape, bool]] = field(default_factory=set)
    """(shape, whether beside the reservation): resources only shrink within a round."""

    @classmethod
    def of(cls, held: Sequence[PlacedGang], total: Sequence[ClusterNode], now: float) -> _Round:
        busy, idle = [h for h in held if not h.idle], [h for h in held if h.idle]
        free, emptied = FreeResources.of(total, held), FreeResources.of(total, busy)
        return cls(now, busy, idle, free, emptied)

    def admit(self, queue: Iterable[WaitingTrial], total: Sequence[ClusterNode]) -> list[Decision]:
        """See `admit`; afterwards `busy` and `idle` are the gangs once that is carried out."""
        decisions: list[Decision] = []
        empty, reserved_for = FreeResources.of(total), None
        for waiting in in_turn(queue):
            number, shape, reservation = waiting.number, waiting.shape, self.reservation
            free, behind = self.emptied.count_workers(shape), None
            kind: WaitKind = "next"
            if not empty.fits(shape):
                kind = "no_such_node"
                decisions.append(Refuse(number, refusal(shape, total)))
            elif started := self.start(waiting):
                decisions += started
            elif self.reservation is not reservation:
                kind, reserved_for = "reserved", number
            elif free < shape.workers:
                kind = "no_room"
            else:
                kind, behind = "behind", reserved_for
            self.waits[number] = Wait(kind=kind, needs=shape.workers, free=free, behind=behind)
        return decisions

    def start(self, waiting: WaitingTrial) -> list[Decision]:
        """How this trial starts now; empty if it cannot. The first that cannot gets a reservation.

        The places are tried in this order: an idle gang of its shape, free resources, resources
        of idle gangs.
        """
        shape, reservation = waiting.shape, self.reservation
        beside = reservation is not None and not reservation.leaves_time_for(waiting, self.now)
        if {(shape, False), (shape, beside)} & self._without_place:
            return []
        # The gang that ended last has the warmest caches; the longest idle is the one to retire.
        for gang in reversed(self.idle):
            if gang.shape == shape and (
                reservation is None
                or not beside
                or reservation.beside.fits_at(shape, gang.placement)
            ):
                self.idle.remove(gang)
                self._occupy(waiting, gang.placement, beside)
                return [Start(waiting.number, gang=gang.gang)]
        for free in (self.free, self.emptied):
            allowed = free.common(reservation.beside) if reservation and beside else free
            placement = allowed.place(shape)
            if placement is not None:
                retired = self._retire_for(shape, placement)
                self.free.take(shape, placement)
                self._occupy(waiting, placement, beside)
                return [*retired, Start(waiting.number, placement=placement)]
        self._without_place.add((shape, beside))
        if reservation is None:
            self.reservation = _reserve(shape, [g for g in self.busy if g.ours], self.emptied)
        return []

    def _retire_for(self, shape: Shape, placement: Placement) -> list[Retire]:
        """End idle gangs on these nodes, the longest idle first, until the gang fits."""
        in_the_way = [gang for gang in self.idle if set(gang.placement) & set(placement)]
        retired: list[Retire] = []
        for gang in in_the_way:
            if self.free.fits_at(shape, placement):
                break
            self.idle.remove(gang)
            self.free.give_back(gang.shape, gang.placement)
            retired.append(Retire(gang.gang))
        return retired

    def _occupy(self, waiting: WaitingTrial, placement: Placement, beside: bool) -> None:
        """Count the trial as running there; the caller has updated `free`."""
        ends = None if waiting.seconds is None else self.now + waiting.seconds
        self.busy.append(PlacedGang("", waiting.shape, placement, idle=False, ends=ends))
        self.emptied.take(waiting.shape, placement)
        if beside and self.reservation:
            self.reservation.beside.take(waiting.shape, placement)


@dataclass(frozen=True)
class _Reservation:
    """From `start` on (None: not known) a gang is to have its place; `beside` is then free."""

    start: float | None
    beside: FreeResources

    def leaves_time_for(self, waiting: WaitingTrial, now: float) -> bool:
        """Whether the trial, started now, is predicted to end before the reservation starts."""
        if self.start is None or waiting.seconds is None:
            return False
        return now + waiting.seconds <= self.start


def _reserve(
    shape: Shape, busy: Iterable[PlacedGang], emptied: FreeResources
) -> _Reservation | None:
    """The first time at which the gang fits, as running trials end; unknown ends come last.

    None if it does not fit even then: other programs have its place and may keep it for ever, so
    no trial is held back for it.
    """
    beside, start = emptied.copy(), None
    for gang in sorted(busy, key=lambda h: inf if h.ends is None else h.ends):
        if beside.fits(shape):
            break
        beside.give_back(gang.shape, gang.placement)
        start = gang.ends
    placement = beside.place(shape)
    if placement is None:
        return None
    beside.take(shape, placement)
    return _Reservation(start, beside)


def waits(
    queue: Iterable[WaitingTrial],
    held: Sequence[PlacedGang],
    total: Sequence[ClusterNode],
    now: float,
) -> dict[int, Wait]:
    """Why each trial of the queue waits, in the order of their turn."""
    this_round = _Round.of(held, total, now)
    this_round.admit(queue, total)
    return this_round.waits
