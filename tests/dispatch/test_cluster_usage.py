"""What others use of a cluster, computed from what Ray reports as unused."""

from __future__ import annotations

import pytest

from mptune.dispatch.admission import Retire, Start, WaitingTrial, admit, waits
from mptune.dispatch.placement import BLOCKED_S, ClusterNode, OtherUsage, PlacedGang, Shape

TWO = [ClusterNode("a", 4, 2), ClusterNode("b", 4)]
PAIR = Shape(2, 1, 0.5)


def unused(a: float, b: float, gpus: float = 2) -> dict[str, ClusterNode]:
    return {"a": ClusterNode("a", a, gpus), "b": ClusterNode("b", b)}


def ours(*placement: str) -> PlacedGang:
    return PlacedGang("gang-1", PAIR, placement, idle=False)


def amounts(usage: OtherUsage) -> dict[str, tuple[float, float]]:
    """(CPUs, GPUs) that admission sees as used on each node."""
    return {h.placement[0]: (h.shape.cpus, h.shape.gpus) for h in usage.held()}


@pytest.mark.parametrize(
    ("free", "gangs", "others"),
    [
        (unused(4, 4), [], {}),
        (unused(1, 4, gpus=0.5), [], {"a": (3, 1.5)}),
        (unused(2, 4, gpus=1), [ours("a", "a")], {}),
        (unused(1, 3, gpus=1.5), [ours("a", "b")], {"a": (2, 0)}),
        (unused(4, 4), [ours("a", "a")], {}),  # gone by now
        ({"a": ClusterNode("a", 4, 2)}, [], {"b": (4, 0)}),  # not known yet
        (unused(4, 4), [ours("left", "left")], {}),
    ],
)
def test_others_hold_what_is_neither_ours_nor_unused(free, gangs, others):
    usage = OtherUsage()
    usage.update(TWO, free, gangs, 0.0)
    assert amounts(usage) == others


def test_a_place_that_only_looked_free_is_shut_for_a_while():
    usage = OtherUsage()
    usage.block(("b",), 10.0)
    usage.update(TWO, unused(4, 4), [], 10.0)
    assert amounts(usage) == {"b": (4, 0)}
    usage.update(TWO, unused(4, 4), [], 10.0 + BLOCKED_S)
    assert amounts(usage) == {}


def test_machines_are_wanted_beside_others_that_stay_and_not_for_a_moments_seeming():
    usage = OtherUsage()
    usage.update(TWO, unused(3, 1), [], 0.0)
    assert usage.lasting() == []
    usage.update(TWO, unused(4, 2), [], 1.0)
    assert usage.lasting() == [Shape(1, 2, 0)]


def test_admission_goes_beside_them_and_gives_up_idle_gangs_for_room_that_they_leave():
    usage = OtherUsage()
    idle = PlacedGang("gang-1", Shape(1, 4, 0), ("b",), idle=True)
    usage.update(TWO, unused(0, 0, gpus=0), [idle], 0.0)
    waiting = WaitingTrial(7, Shape(1, 2, 0))
    decided = admit([waiting], [idle, *usage.held()], TWO)
    assert decided == [Retire("gang-1"), Start(7, placement=("b",))]


def test_what_waits_for_others_keeps_nobody_waiting_until_its_own_search_is_in_its_way():
    """They may never leave."""
    nodes = [ClusterNode("a", 1), ClusterNode("b", 1)]
    large, small = WaitingTrial(1, Shape(2, 1, 0)), WaitingTrial(2, Shape(1, 1, 0), since=1.0)
    usage = OtherUsage()
    for now in (0.0, 1.0):
        usage.update(nodes, {"b": ClusterNode("b", 1)}, [], now)
    held = list(usage.held())
    assert admit([large, small], held, nodes, now=1.0) == [Start(2, placement=("b",))]
    assert kinds([large, small], held, nodes) == {1: "no_room", 2: "next"}

    on_b = PlacedGang("gang-1", small.shape, ("b",), idle=False)
    usage.update(nodes, {"a": ClusterNode("a", 1)}, [on_b], 2.0)
    held = [on_b, *usage.held()]
    assert admit([large, small], held, nodes, now=2.0) == []
    assert kinds([large, small], held, nodes) == {1: "reserved", 2: "behind"}


def test_a_reservation_outlives_the_moment_in_which_a_gang_before_it_leaves_its_place():
    """Ray releases it a little later, so that another program seems to use it."""
    nodes = [ClusterNode("a", 1), ClusterNode("b", 1)]
    large, small = WaitingTrial(1, Shape(2, 1, 0)), WaitingTrial(2, Shape(1, 1, 0), since=1.0)
    on_b, usage = PlacedGang("gang-1", small.shape, ("b",), idle=False), OtherUsage()
    usage.update(nodes, {"a": ClusterNode("a", 1)}, [on_b], 0.0)
    usage.update(nodes, {"a": ClusterNode("a", 1)}, [], 1.0)
    held = list(usage.held())
    assert admit([large, small], held, nodes, now=1.0) == []
    assert kinds([large, small], held, nodes) == {1: "reserved", 2: "behind"}


def kinds(
    queue: list[WaitingTrial], held: list[PlacedGang], nodes: list[ClusterNode]
) -> dict[int, str]:
    return {number: wait.kind for number, wait in waits(queue, held, nodes, 1.0).items()}
