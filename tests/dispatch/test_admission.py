"""Admission under simulated time: who starts when, and that nobody starves or overcommits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from mptune.dispatch.admission import (
    Held,
    Node,
    Refuse,
    Retire,
    Shape,
    Start,
    admit,
    free,
    how_many,
    place,
)
from mptune.spec import Resources

ONE, TWO, FOUR = Shape(1, 1, 0), Shape(2, 1, 0), Shape(4, 1, 0)
WIDE = Shape(1, 2, 0)


def test_a_gang_goes_on_one_node_if_one_takes_it_and_else_on_as_few_as_possible():
    nodes = [Node("a", 2), Node("b", 3), Node("c", 1)]
    assert place(nodes, Shape(3, 1, 0)) == ("b", "b", "b")
    assert place(nodes, Shape(5, 1, 0)) == ("b", "b", "b", "a", "a")
    assert place(nodes, Shape(7, 1, 0)) is None


def test_gpus_and_fractions_count():
    node = Node("a", 8, 2)
    assert place([node], Shape(2, 1, 1)) == ("a", "a")
    assert place([node], Shape(3, 1, 1)) is None
    assert how_many([Node("a", 0.3)], Shape(1, 0.1, 0)) == 3


def test_how_many_gangs_fit_at_once():
    assert how_many([Node("a", 3), Node("b", 3)], TWO) == 3  # the third one is spread
    assert how_many([Node("a", 1)], TWO) == 0


def test_the_shape_is_what_the_resources_say():
    shape = Shape.of(Resources(workers=2, cpus_per_worker=4, gpus_per_worker=1))
    assert str(shape) == "2 workers of 4 CPU and 1 GPU"


def test_first_come_first_served():
    assert admit([(0, ONE), (1, ONE), (2, ONE)], [], [Node("a", 2)]) == [
        Start(0, placement=("a",)),
        Start(1, placement=("a",)),
    ]


def test_an_idle_gang_of_the_shape_is_used_again():
    held = [Held("gang-1", TWO, ("a", "a"), idle=True)]
    assert admit([(5, TWO)], held, [Node("a", 4)]) == [Start(5, gang="gang-1")]


def test_the_gang_that_worked_last_goes_on():
    held = [Held(name, ONE, ("a",), idle=True) for name in ("longest idle", "just idle")]
    assert admit([(5, ONE)], held, [Node("a", 4)]) == [Start(5, gang="just idle")]


def test_an_idle_gang_is_used_once():
    held = [Held("gang-1", ONE, ("a",), idle=True)]
    started = admit([(0, ONE), (1, ONE)], held, [Node("a", 2)])
    assert started == [Start(0, gang="gang-1"), Start(1, placement=("a",))]


def test_idle_gangs_of_other_shapes_make_room_the_longest_idle_first():
    held = [Held("old", ONE, ("a",), idle=True), Held("new", ONE, ("a",), idle=True)]
    assert admit([(0, TWO)], held, [Node("a", 3)]) == [
        Retire("old"),
        Start(0, placement=("a", "a")),
    ]


def test_idle_gangs_elsewhere_are_left_alone():
    held = [Held("there", ONE, ("b",), idle=True), Held("here", ONE, ("a",), idle=True)]
    decisions = admit([(0, WIDE)], held, [Node("a", 2), Node("b", 1)])
    assert decisions == [Retire("here"), Start(0, placement=("a",))]


def test_what_never_fits_is_refused_and_holds_up_nobody():
    refused, started = admit([(0, FOUR), (1, ONE)], [], [Node("a", 2)])
    assert started == Start(1, placement=("a",))
    assert refused == Refuse(
        0,
        "the trial needs 4 workers of 1 CPU; the cluster holds 2 CPU and 0 GPU: "
        "lower resources or add nodes",
    )


def test_the_oldest_that_waits_keeps_its_place_from_younger_ones():
    running = [Held("g", ONE, ("a",), idle=False)]
    assert admit([(1, TWO), (2, ONE)], running, [Node("a", 2)]) == []


def test_younger_ones_start_beside_the_reservation():
    running = [Held("g", ONE, ("a",), idle=False)]
    nodes = [Node("a", 2), Node("b", 1)]
    assert admit([(1, WIDE), (2, ONE)], running, nodes) == [Start(2, placement=("b",))]


def test_an_idle_gang_inside_the_reservation_is_not_used_by_younger_ones():
    held = [Held("busy", ONE, ("a",), idle=False), Held("idle", ONE, ("a",), idle=True)]
    assert admit([(1, TWO), (2, ONE)], held, [Node("a", 2)]) == []


@dataclass(frozen=True)
class Job:
    arrives: int
    shape: Shape
    lasts: int


@dataclass
class Simulation:
    """A cluster under simulated time; carries out what admission decides."""

    total: list[Node]
    jobs: list[Job]
    now: int = 0
    held: list[Held] = field(default_factory=list)
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
        queue = [
            (number, job.shape)
            for number, job in enumerate(self.jobs)
            if job.arrives <= self.now and number not in self.refused | self.started.keys()
        ]
        for decision in admit(queue, self.held, self.total):
            match decision:
                case Refuse(number, _):
                    self.refused.add(number)
                case Retire(gang):
                    assert next(h for h in self.held if h.gang == gang).idle
                    self.held = [h for h in self.held if h.gang != gang]
                case Start(number, gang, placement):
                    self._start(number, gang or f"gang-{number}", placement)
            self._check()

    def _start(self, number: int, gang: str, placement: tuple[str, ...]) -> None:
        job = self.jobs[number]
        if placement:
            self.held.append(Held(gang, job.shape, placement, idle=False))
        assert next(h for h in self.held if h.gang == gang).shape == job.shape
        self.held = [replace(h, idle=h.idle and h.gang != gang) for h in self.held]
        self.started[number] = self.now
        self.ends[gang] = self.now + job.lasts

    def _check(self) -> None:
        for node in self.total:
            taken = sum(h.shape.cpus * h.placement.count(node.id) for h in self.held)
            assert taken <= node.cpus, "overcommitted"


def test_a_large_trial_is_not_starved_by_a_stream_of_small_ones():
    stream = [Job(arrives=t, shape=ONE, lasts=5) for t in range(100)]
    simulation = Simulation([Node("a", 4)], [*stream[:10], Job(10, FOUR, 3), *stream[10:]])
    simulation.run(200)
    # Older trials and those that run go first, nobody else.
    before = [n for n, start in simulation.started.items() if start < simulation.started[10]]
    assert sorted(before) == list(range(10))
    assert len(simulation.started) == 101


shapes = st.builds(Shape, st.integers(1, 4), st.sampled_from([0.5, 1, 2]), st.just(0))
jobs = st.builds(Job, st.integers(0, 20), shapes, st.integers(1, 6))
clusters = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda sizes: [Node(f"n{i}", cpus) for i, cpus in enumerate(sizes)]
)


@given(clusters, st.lists(jobs, max_size=12))
def test_everything_that_fits_runs_and_nothing_is_overcommitted(total, jobs):
    jobs.sort(key=lambda job: job.arrives)
    simulation = Simulation(total, jobs).run(until=200)
    unfit = {n for n, job in enumerate(jobs) if place(total, job.shape) is None}
    assert simulation.refused == unfit
    assert simulation.started.keys() == set(range(len(jobs))) - unfit


@given(clusters, shapes)
def test_capacity_is_what_admission_would_start(total, shape):
    started = admit([(n, shape) for n in range(50)], [], total)
    assert sum(isinstance(d, Start) for d in started) == how_many(total, shape)
    held = [Held(str(d.number), shape, d.placement, False) for d in started if type(d) is Start]
    assert place(free(total, held), shape) is None
