"""Admission under simulated time: which trial starts when, without starving or overcommitting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptune.dispatch.admission import (
    HEAD_START_DURATION,
    HEAD_START_SIZE,
    Decision,
    Refuse,
    Retire,
    Start,
    WaitingTrial,
    admit,
    in_turn,
    trial_capacity,
    waits,
)
from mptune.dispatch.placement import ClusterNode, FreeResources, PlacedGang, Shape
from mptune.status import Wait

ONE, TWO, FOUR = Shape(1, 1, 0), Shape(2, 1, 0), Shape(4, 1, 0)
WIDE = Shape(1, 2, 0)


def test_how_many_trials_can_be_in_flight():
    nodes = [ClusterNode("a", 3), ClusterNode("b", 3)]
    assert trial_capacity(nodes, [], TWO) == 3  # the third one is spread
    assert trial_capacity([ClusterNode("a", 1)], [], TWO) == 0
    assert trial_capacity(nodes, [FOUR], ONE) == 1 + 2
    assert trial_capacity(nodes, [FOUR, FOUR], ONE) == 2, "one waits, so none is asked for"


def queue(*entries: tuple[int, Shape], **fields: float) -> list[WaitingTrial]:
    """Trials that came together, in order of their numbers."""
    return [WaitingTrial(number, shape, **fields) for number, shape in entries]


def test_first_come_first_served():
    assert admit(queue((0, ONE), (1, ONE), (2, ONE)), [], [ClusterNode("a", 2)]) == [
        Start(0, placement=("a",)),
        Start(1, placement=("a",)),
    ]


def test_an_idle_gang_of_the_shape_is_used_again():
    held = [PlacedGang("gang-1", TWO, ("a", "a"), idle=True)]
    assert admit(queue((5, TWO)), held, [ClusterNode("a", 4)]) == [Start(5, gang="gang-1")]


def test_the_gang_that_worked_last_goes_on():
    held = [PlacedGang(name, ONE, ("a",), idle=True) for name in ("longest idle", "just idle")]
    assert admit(queue((5, ONE)), held, [ClusterNode("a", 4)]) == [Start(5, gang="just idle")]


def test_an_idle_gang_is_used_once():
    held = [PlacedGang("gang-1", ONE, ("a",), idle=True)]
    started = admit(queue((0, ONE), (1, ONE)), held, [ClusterNode("a", 2)])
    assert started == [Start(0, gang="gang-1"), Start(1, placement=("a",))]


def test_idle_gangs_of_other_shapes_make_room_the_longest_idle_first():
    held = [PlacedGang("old", ONE, ("a",), idle=True), PlacedGang("new", ONE, ("a",), idle=True)]
    assert admit(queue((0, TWO)), held, [ClusterNode("a", 3)]) == [
        Retire("old"),
        Start(0, placement=("a", "a")),
    ]


def test_idle_gangs_elsewhere_are_left_alone():
    held = [PlacedGang("there", ONE, ("b",), idle=True), PlacedGang("here", ONE, ("a",), idle=True)]
    decisions = admit(queue((0, WIDE)), held, [ClusterNode("a", 2), ClusterNode("b", 1)])
    assert decisions == [Retire("here"), Start(0, placement=("a",))]


def test_what_never_fits_is_refused_and_holds_up_nobody():
    refused, started = admit(queue((0, FOUR), (1, ONE)), [], [ClusterNode("a", 2)])
    assert started == Start(1, placement=("a",))
    assert refused == Refuse(
        0,
        "the trial needs 4 workers of 1 CPU; the cluster holds 2 CPU and 0 GPU: "
        "lower resources or add nodes",
    )


def test_the_oldest_that_waits_keeps_its_place_from_younger_ones():
    running = [PlacedGang("g", ONE, ("a",), idle=False)]
    assert admit(queue((1, TWO), (2, ONE)), running, [ClusterNode("a", 2)]) == []


def test_younger_ones_start_beside_the_reservation():
    running = [PlacedGang("g", ONE, ("a",), idle=False)]
    nodes = [ClusterNode("a", 2), ClusterNode("b", 1)]
    assert admit(queue((1, WIDE), (2, ONE)), running, nodes) == [Start(2, placement=("b",))]


def test_an_idle_gang_inside_the_reservation_is_not_used_by_younger_ones():
    held = [PlacedGang("busy", ONE, ("a",), idle=False), PlacedGang("idle", ONE, ("a",), idle=True)]
    assert admit(queue((1, TWO), (2, ONE)), held, [ClusterNode("a", 2)]) == []


# --- time ----------------------------------------------------------------------------------------


def test_larger_and_longer_trials_have_a_head_start_that_is_bounded():
    small, large = (
        WaitingTrial(0, ONE, since=0, seconds=80),
        WaitingTrial(1, FOUR, since=0, seconds=80),
    )
    assert in_turn([small, replace(large, since=179)])[0].number == 1
    assert in_turn([small, replace(large, since=181)])[0].number == 0
    long = WaitingTrial(2, ONE, since=0, seconds=100)
    assert in_turn([small, replace(long, since=59)])[0].number == 2
    assert in_turn([small, replace(long, since=61)])[0].number == 0


def test_without_predictions_the_oldest_is_first():
    assert in_turn([WaitingTrial(0, FOUR, since=2), WaitingTrial(1, ONE, since=1)])[0].number == 1


def test_a_trial_of_unknown_time_counts_as_a_typical_one():
    unknown, known = WaitingTrial(0, ONE, since=1), WaitingTrial(1, ONE, since=0, seconds=50)
    assert in_turn([unknown, known])[0].number == 1
    assert in_turn([replace(unknown, since=0), known])[0].number == 0


times = st.one_of(st.none(), st.floats(0, 1e4))
trials = st.builds(
    WaitingTrial,
    st.integers(0, 99),
    st.builds(Shape, st.integers(1, 64), st.just(1), st.sampled_from([0, 1])),
    st.floats(0, 1e6),
    times,
)


@given(st.lists(trials, min_size=2, max_size=8))
def test_nobody_is_passed_for_longer_than_the_largest_head_start(queue):
    """However large and long what comes later is: after so much time it comes behind."""
    longest = max([w.seconds for w in queue if w.seconds is not None], default=0.0)
    bound = (HEAD_START_SIZE + HEAD_START_DURATION) * longest
    turn = in_turn(queue)
    for place, passed in enumerate(turn):
        for earlier in turn[:place]:
            assert earlier.since <= passed.since + bound + 1e-3


HALF = PlacedGang("half", TWO, ("a", "a"), idle=False, ends=50)


def test_a_trial_that_ends_before_the_reservation_goes_in_between():
    waiting = [
        WaitingTrial(1, FOUR, since=-99, seconds=10),
        WaitingTrial(2, TWO, since=1, seconds=40),
    ]
    assert admit(waiting, [HALF], [ClusterNode("a", 4)], now=10) == [Start(2, placement=("a", "a"))]
    late = admit(waiting, [HALF], [ClusterNode("a", 4)], now=11)
    assert late == [], "it would end at 51, and the reservation begins at 50"


@pytest.mark.parametrize("unknown", ["the end of what runs", "the time of what waits"])
def test_nothing_goes_in_between_on_a_guess(unknown):
    ends = None if unknown == "the end of what runs" else 50
    seconds = None if unknown == "the time of what waits" else 1
    waiting = [
        WaitingTrial(1, FOUR, since=0),
        WaitingTrial(2, TWO, since=1, seconds=seconds),
    ]
    assert admit(waiting, [replace(HALF, ends=ends)], [ClusterNode("a", 4)], now=10) == []


def test_an_idle_gang_in_the_reservation_is_used_in_between():
    held = [HALF, PlacedGang("idle", TWO, ("a", "a"), idle=True)]
    waiting = [
        WaitingTrial(1, FOUR, since=-99, seconds=10),
        WaitingTrial(2, TWO, since=1, seconds=30),
    ]
    assert admit(waiting, held, [ClusterNode("a", 4)], now=10) == [Start(2, gang="idle")]
    waiting[1] = replace(waiting[1], seconds=60)
    assert admit(waiting, held, [ClusterNode("a", 4)], now=10) == []


def test_the_reservation_is_where_gangs_end_first():
    held = [
        PlacedGang("late", TWO, ("a", "a"), idle=False, ends=90),
        PlacedGang("soon", TWO, ("b", "b"), idle=False, ends=20),
    ]
    nodes = [ClusterNode("a", 3), ClusterNode("b", 3)]
    long = WaitingTrial(2, ONE, since=1, seconds=1000)
    # Trial 1 will take b's three and not the free one of a, so that one is for anybody.
    waiting = [WaitingTrial(1, Shape(3, 1, 0), since=-999, seconds=10), long]
    assert admit(waiting, held, nodes, now=10) == [Start(2, placement=("a",))]


def test_why_each_one_waits():
    held = [PlacedGang("busy", TWO, ("a", "a"), idle=False)]
    eight = Shape(8, 1, 0)
    waiting = queue((0, eight), (1, FOUR), (2, ONE), (3, Shape(3, 1, 0)))
    assert waits(waiting, held, [ClusterNode("a", 4)], now=0) == {
        0: Wait(kind="no_such_node", needs=8, free=2),
        1: Wait(kind="reserved", needs=4, free=2),
        2: Wait(kind="behind", needs=1, free=2, behind=1),
        3: Wait(kind="no_room", needs=3, free=2),
    }
    assert waits(queue((7, TWO)), held, [ClusterNode("a", 4)], now=0)[7].kind == "next"


def carry_out(
    decisions: Iterable[Decision],
    queue: Iterable[WaitingTrial],
    held: Iterable[PlacedGang],
    now: float,
) -> list[PlacedGang]:
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
            gangs[name] = PlacedGang(name, trial.shape, placement, idle=False, ends=ends)
    return list(gangs.values())


@dataclass(frozen=True)
class Job:
    arrives: int
    shape: Shape
    lasts: int


@dataclass
class Simulation:
    """A cluster under simulated time; carries out what admission decides."""

    total: list[ClusterNode]
    jobs: list[Job]
    known: bool = True
    now: int = 0
    held: list[PlacedGang] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    started: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)

    def run(self, until: int) -> Simulation:
        while self.now < until:
            self._end_trials()
            self._admit()
            self.now += 1
        return self

    def _end_trials(self) -> None:
        over = {gang for gang, end in self.ends.items() if end <= self.now}
        self.held = [replace(h, idle=h.idle or h.gang in over) for h in self.held]

    def _admit(self) -> None:
        waiting = self._waiting()
        decisions = admit(waiting, self.held, self.total, self.now)
        for decision in decisions:
            match decision:
                case Refuse(number, _):
                    self.refused.add(number)
                case Retire(gang):
                    assert next(h for h in self.held if h.gang == gang).idle
                case Start(number, gang, _):
                    self._start(number, gang)
        self.held = carry_out(decisions, waiting, self.held, self.now)
        self._check()

    def _waiting(self) -> list[WaitingTrial]:
        return [
            WaitingTrial(number, job.shape, job.arrives, job.lasts if self.known else None)
            for number, job in enumerate(self.jobs)
            if job.arrives <= self.now and number not in self.refused | self.started.keys()
        ]

    def _start(self, number: int, gang: str | None) -> None:
        job = self.jobs[number]
        if gang:
            reused = next(h for h in self.held if h.gang == gang)
            assert reused.idle
            assert reused.shape == job.shape
        self.started[number] = self.now
        self.ends[gang or f"for trial {number}"] = self.now + job.lasts

    def _check(self) -> None:
        for node in self.total:
            taken = sum(h.shape.cpus * h.placement.count(node.id) for h in self.held)
            assert taken <= node.cpus, "overcommitted"


@pytest.mark.parametrize("known", [False, True])
def test_a_large_trial_is_not_starved_by_a_stream_of_small_ones(known):
    stream = [Job(arrives=t, shape=ONE, lasts=5) for t in range(100)]
    jobs = [*stream[:10], Job(10, FOUR, 3), *stream[10:]]
    simulation = Simulation([ClusterNode("a", 4)], jobs, known).run(300)
    # Those that ran when it came go first, and at most those that are older than it.
    before = [n for n, start in simulation.started.items() if start < simulation.started[10]]
    assert set(before) <= set(range(10))
    assert len(simulation.started) == 101


def test_small_trials_are_not_starved_by_a_stream_of_large_ones():
    stream = [Job(arrives=t, shape=FOUR, lasts=3) for t in range(0, 90, 2)]
    simulation = Simulation([ClusterNode("a", 4)], [*stream[:5], Job(10, ONE, 3), *stream[5:]]).run(
        300
    )
    assert simulation.started[5] < 60
    assert len(simulation.started) == 46


shapes = st.builds(Shape, st.integers(1, 4), st.sampled_from([0.5, 1, 2]), st.just(0))
jobs = st.builds(Job, st.integers(0, 20), shapes, st.integers(1, 6))
clusters = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda sizes: [ClusterNode(f"n{i}", cpus) for i, cpus in enumerate(sizes)]
)


@given(clusters, st.lists(jobs, max_size=12), st.booleans())
def test_everything_that_fits_runs_and_nothing_is_overcommitted(total, jobs, known):
    jobs.sort(key=lambda job: job.arrives)
    simulation = Simulation(total, jobs, known).run(until=200)
    unfit = {n for n, job in enumerate(jobs) if not FreeResources.of(total).fits(job.shape)}
    assert simulation.refused == unfit
    assert simulation.started.keys() == set(range(len(jobs))) - unfit


@dataclass
class Promised(Simulation):
    """Holds admission to what it promises whose turn it is: the time when there is room."""

    promise: tuple[int, float] | None = None

    def _admit(self) -> None:
        first = next(iter(in_turn(self._waiting())), None)
        if self.promise and first and first.number != self.promise[0]:
            self.promise = None  # one with a larger head start has come
        super()._admit()
        if self.promise and self.promise[0] in self.started:
            number, start = self.promise
            assert self.started[number] <= start, "another trial took its place"
        first = next(iter(in_turn(self._waiting())), None)
        if first and (self.promise is None or self.promise[0] != first.number):
            self.promise = first.number, self._room_at(first.shape)

    def _room_at(self, shape: Shape) -> float:
        """When enough of what runs has ended."""
        running = [h for h in self.held if not h.idle]
        ends = sorted(self.ends[h.gang] for h in running)
        return next(
            end
            for end in ends
            if FreeResources.of(self.total, [h for h in running if self.ends[h.gang] > end]).fits(
                shape
            )
        )


@given(clusters, st.lists(jobs, max_size=12))
def test_whose_turn_it_is_starts_when_there_is_room_if_predictions_are_exact(total, jobs):
    """Whatever comes later or goes in between, unless that has a larger head start."""
    Promised(total, sorted(jobs, key=lambda job: job.arrives)).run(until=200)


@given(clusters, shapes)
def test_capacity_is_what_admission_would_start(total, shape):
    started = admit(queue(*((n, shape) for n in range(50))), [], total)
    assert sum(isinstance(d, Start) for d in started) == trial_capacity(total, [], shape)
    held = [
        PlacedGang(str(d.number), shape, d.placement, False) for d in started if type(d) is Start
    ]
    assert not FreeResources.of(total, held).fits(shape)
