"""Who starts next: first come, first served, with a reservation for the first that must wait.

Pure: from what the cluster holds, what waits and the time, decide. Nothing here knows of Ray.

A trial counts as older the more GPUs it takes and the longer it is predicted to run: large gangs
are hard to find room for, and long ones keep a search waiting at its end. That head start is
bounded by a few trials' times, so that nobody waits for ever. The first one that does not fit
reserves the place that will be free for it first, at the time when the gangs there are predicted to
end. Others start beside that reservation, or in it if they are predicted to end before its time
(EASY backfilling, Lifka 1995, https://doi.org/10.1007/3-540-60153-8_35). No gang is asked for
before it is admitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import fmean
from typing import Literal

from mptune.dispatch.room import Node, Placement, Room, Shape
from mptune.status import Wait

FOR_LARGE = 3.0
"""Head start of the largest gang that waits, in typical trials' times; a smaller one's by size."""

FOR_LONG = 3.0
"""Head start in a trial's own predicted time."""


@dataclass(frozen=True)
class Waiting:
    """A trial in the queue. Times are in seconds from any origin."""

    number: int
    shape: Shape
    since: float = 0.0
    seconds: float | None = None
    """How long it is predicted to run; None is not known."""


@dataclass(frozen=True)
class Held:
    """A gang that stands: where it is, whether it waits for a trial, and when its trial ends."""

    gang: str
    shape: Shape
    placement: Placement
    idle: bool
    ends: float | None = None
    """When its trial is predicted to end; None is not known, or idle."""
    ours: bool = True
    """False: somebody else's, for who knows how long; nothing is promised for its end."""


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

WaitKind = Literal["next", "reserved", "no_room", "behind", "no_such_node"]


def in_turn(queue: Iterable[Waiting]) -> list[Waiting]:
    """The queue, whose turn it is first: the oldest, each with its head start.

    A trial of unknown time counts as a typical one.
    """
    waiting = list(queue)
    known = [w.seconds for w in waiting if w.seconds is not None]
    typical_s = fmean(known) if known else 0.0
    largest = max((w.shape.weight for w in waiting), default=0.0)

    def turn(w: Waiting) -> tuple[float, int]:
        for_large_s = FOR_LARGE * typical_s * w.shape.weight / largest
        for_long_s = FOR_LONG * (typical_s if w.seconds is None else w.seconds)
        return w.since - for_large_s - for_long_s, w.number

    return sorted(waiting, key=turn)


def in_flight(nodes: Iterable[Node], flying: Sequence[Shape], smallest: Shape) -> int:
    """How many trials can be in flight: those that are, and more where these leave room.

    It depends on nothing else, so that a search that is run again asks for the same trials.
    """
    room = Room.of(nodes)
    for shape in flying:
        placement = room.place(shape)
        if placement is None:
            return len(flying)
        room.take(shape, placement)
    return len(flying) + room.slots(smallest) // smallest.workers


def free(total: Iterable[Node], held: Iterable[Held]) -> Room:
    """What the gangs leave of the cluster."""
    return _left(Room.of(total), held)


def _left(empty: Room, held: Iterable[Held]) -> Room:
    room = empty.copy()
    for gang in held:
        room.take(gang.shape, gang.placement)
    return room


def admit(
    queue: Iterable[Waiting], held: Sequence[Held], total: Sequence[Node], now: float = 0.0
) -> list[Decision]:
    """What to do now, in this order; `held` is longest idle first."""
    decisions: list[Decision] = []
    empty = Room.of(total)
    turn = _Turn.of(held, empty, now)
    for waiting in in_turn(queue):
        if not empty.fits(waiting.shape):
            decisions.append(Refuse(waiting.number, refusal(waiting.shape, total)))
        else:
            decisions += turn.serve(waiting)
    return decisions


def refusal(shape: Shape, total: Iterable[Node]) -> str:
    """Why a gang of this shape can never be."""
    kinds = Counter((node.cpus, node.gpus) for node in total)
    there = ", ".join(_nodes(n, cpus, gpus) for (cpus, gpus), n in kinds.items()) or "no node"
    return f"the trial needs {shape}; the cluster holds {there}: lower resources or add nodes"


def _nodes(count: int, cpus: float, gpus: float) -> str:
    return f"{f'{count} nodes of ' if count > 1 else ''}{cpus:g} CPU and {gpus:g} GPU"


@dataclass
class _Turn:
    """One round of decisions: what stands, what is free beside it, and what is promised.

    `room` is free now, `emptied` would be if all idle gangs were given up.
    """

    now: float
    busy: list[Held]
    idle: list[Held]
    room: Room
    emptied: Room
    promise: _Promise | None = None
    _without: set[tuple[Shape, bool]] = field(default_factory=set)
    """Shapes that found no place, beside the promise or anywhere: room only shrinks in a round."""

    @classmethod
    def of(cls, held: Sequence[Held], empty: Room, now: float) -> _Turn:
        busy, idle = [h for h in held if not h.idle], [h for h in held if h.idle]
        room = _left(empty, held)
        emptied = room.copy()
        for gang in idle:
            emptied.give(gang.shape, gang.placement)
        return cls(now, busy, idle, room, emptied)

    def serve(self, waiting: Waiting) -> list[Decision]:
        """How this trial starts now: on an idle gang, in free room, or in place of idle gangs."""
        beside = self.promise is not None and not self.promise.is_over_before(waiting, self.now)
        if self._has_no_place(waiting.shape, beside):
            return []
        plan = self._on_idle(waiting, beside) or self._on_new(waiting, beside)
        if not plan:
            self._without.add((waiting.shape, beside))
            self._reserve(waiting)
        return plan

    def _has_no_place(self, shape: Shape, beside: bool) -> bool:
        return (shape, False) in self._without or (beside and (shape, True) in self._without)

    def _reserve(self, waiting: Waiting) -> None:
        if self.promise is None:
            ours = (gang for gang in self.busy if gang.ours)
            self.promise = _promise(waiting.shape, ours, self.emptied)

    def _on_idle(self, waiting: Waiting, beside: bool) -> list[Decision]:
        """The gang that worked last goes on, so that its caches are warm and others can go."""
        for gang in reversed(self.idle):
            if gang.shape == waiting.shape and self._may_be_at(gang.shape, gang.placement, beside):
                self.idle.remove(gang)
                self._occupy(waiting, gang.placement, beside)
                return [Start(waiting.number, gang=gang.gang)]
        return []

    def _may_be_at(self, shape: Shape, placement: Placement, beside: bool) -> bool:
        return self.promise is None or not beside or self.promise.later.holds(shape, placement)

    def _on_new(self, waiting: Waiting, beside: bool) -> list[Decision]:
        """In free room, else in that of idle gangs."""
        for room in (self.room, self.emptied):
            placement = self._allowed(room, beside).place(waiting.shape)
            if placement is not None:
                retired = self._retire_for(waiting.shape, placement)
                self.room.take(waiting.shape, placement)
                self._occupy(waiting, placement, beside)
                return [*retired, Start(waiting.number, placement=placement)]
        return []

    def _allowed(self, room: Room, beside: bool) -> Room:
        """The part of this room that breaks no promise."""
        if self.promise is None or not beside:
            return room
        return room.common(self.promise.later)

    def _retire_for(self, shape: Shape, placement: Placement) -> list[Retire]:
        """Give up what is in the way there, the longest idle first, until the gang fits."""
        in_the_way = [gang for gang in self.idle if set(gang.placement) & set(placement)]
        retired: list[Retire] = []
        for gang in in_the_way:
            if self.room.holds(shape, placement):
                break
            self.idle.remove(gang)
            self.room.give(gang.shape, gang.placement)
            retired.append(Retire(gang.gang))
        return retired

    def _occupy(self, waiting: Waiting, placement: Placement, beside: bool) -> None:
        """A trial is there from now on; `room` knows already."""
        ends = None if waiting.seconds is None else self.now + waiting.seconds
        self.busy.append(Held("", waiting.shape, placement, idle=False, ends=ends))
        self.emptied.take(waiting.shape, placement)
        if beside and self.promise:
            self.promise.later.take(waiting.shape, placement)


@dataclass(frozen=True)
class _Promise:
    """A reservation: from when on, and what is then free beside it."""

    start: float | None
    later: Room

    def is_over_before(self, waiting: Waiting, now: float) -> bool:
        """Whether a trial that starts now is predicted to be out of the way in time."""
        if self.start is None or waiting.seconds is None:
            return False
        return now + waiting.seconds <= self.start


def _promise(shape: Shape, busy: Iterable[Held], emptied: Room) -> _Promise | None:
    """The first time at which the gang fits, as running trials end; those of unknown end last.

    None where it does not fit then: others may never leave, and nobody waits with it for them.
    """
    later, start = emptied.copy(), None
    for gang in sorted(busy, key=lambda h: inf if h.ends is None else h.ends):
        if later.fits(shape):
            break
        later.give(gang.shape, gang.placement)
        start = gang.ends
    placement = later.place(shape)
    if placement is None:
        return None
    later.take(shape, placement)
    return _Promise(start, later)


def carry_out(
    decisions: Iterable[Decision], queue: Iterable[Waiting], held: Iterable[Held], now: float
) -> list[Held]:
    """The gangs once these decisions are carried out."""
    waiting = {w.number: w for w in queue}
    gangs = {h.gang: h for h in held}
    for decision in decisions:
        if isinstance(decision, Retire):
            del gangs[decision.gang]
        elif isinstance(decision, Start):
            trial = waiting[decision.number]
            ends = None if trial.seconds is None else now + trial.seconds
            name = decision.gang or f"for trial {trial.number}"
            placement = decision.placement or gangs.pop(name).placement
            gangs[name] = Held(name, trial.shape, placement, idle=False, ends=ends)
    return list(gangs.values())


def expected_starts(
    queue: Iterable[Waiting], held: Iterable[Held], total: Sequence[Node], now: float
) -> dict[int, float]:
    """When each waiting trial will start if all end as predicted; those not known are left out.

    Plays admission forward: every running trial ends when predicted, one after the other.
    """
    left, gangs, starts = list(queue), list(held), dict[int, float]()
    while left:
        decisions = admit(left, gangs, total, now)
        gangs = carry_out(decisions, left, gangs, now)
        starts |= {d.number: now for d in decisions if isinstance(d, Start)}
        gone = {d.number for d in decisions if not isinstance(d, Retire)}
        left = [w for w in left if w.number not in gone]
        ends = [h.ends for h in gangs if h.ends is not None]
        if not ends:
            break
        now = max(now, min(ends))
        gangs = [
            replace(h, idle=True, ends=None) if h.ends is not None and h.ends <= now else h
            for h in gangs
        ]
    return starts


def waits(
    queue: Iterable[Waiting], held: Sequence[Held], total: Sequence[Node], now: float
) -> dict[int, Wait]:
    """Why each trial of the queue waits, in the order of their turn."""
    empty = Room.of(total)
    turn = _Turn.of(held, empty, now)
    first: int | None = None
    found: dict[int, Wait] = {}
    for waiting in in_turn(queue):
        kind: WaitKind = "no_such_node"
        free = turn.emptied.slots(waiting.shape)
        if empty.fits(waiting.shape):
            kind = _wait_kind(turn, waiting)
            first = waiting.number if kind == "reserved" else first
        behind = first if kind == "behind" else None
        found[waiting.number] = Wait(
            kind=kind, needs=waiting.shape.workers, free=max(0, free), behind=behind
        )
    return found


def _wait_kind(turn: _Turn, waiting: Waiting) -> WaitKind:
    fits, promise = turn.emptied.fits(waiting.shape), turn.promise
    if turn.serve(waiting):
        return "next"
    if turn.promise is not promise:
        return "reserved"
    return "behind" if fits else "no_room"
