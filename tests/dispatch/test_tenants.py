"""What others hold of a cluster, from what Ray says is unused."""

from __future__ import annotations

import pytest

from mptune.dispatch.admission import Held, Retire, Start, Waiting, admit, waits
from mptune.dispatch.room import Node, Shape
from mptune.dispatch.tenants import SHUT_S, Tenants

TWO = [Node("a", 4, 2), Node("b", 4)]
PAIR = Shape(2, 1, 0.5)


def unused(a: float, b: float, gpus: float = 2) -> dict[str, Node]:
    return {"a": Node("a", a, gpus), "b": Node("b", b)}


def ours(*placement: str) -> Held:
    return Held("gang-1", PAIR, placement, idle=False)


def amounts(tenants: Tenants) -> dict[str, tuple[float, float]]:
    """What admission is told of each node."""
    return {h.placement[0]: (h.shape.cpus, h.shape.gpus) for h in tenants.held()}


@pytest.mark.parametrize(
    ("free", "gangs", "others"),
    [
        (unused(4, 4), [], {}),
        (unused(1, 4, gpus=0.5), [], {"a": (3, 1.5)}),
        (unused(2, 4, gpus=1), [ours("a", "a")], {}),
        (unused(1, 3, gpus=1.5), [ours("a", "b")], {"a": (2, 0)}),
        (unused(4, 4), [ours("a", "a")], {}),  # gone by now
        ({"a": Node("a", 4, 2)}, [], {"b": (4, 0)}),  # not known yet
        (unused(4, 4), [ours("left", "left")], {}),
    ],
)
def test_others_hold_what_is_neither_ours_nor_unused(free, gangs, others):
    tenants = Tenants()
    tenants.look(TWO, free, gangs, 0.0)
    assert amounts(tenants) == others


def test_a_place_that_only_looked_free_is_shut_for_a_while():
    tenants = Tenants()
    tenants.shut(("b",), 10.0)
    tenants.look(TWO, unused(4, 4), [], 10.0)
    assert amounts(tenants) == {"b": (4, 0)}
    tenants.look(TWO, unused(4, 4), [], 10.0 + SHUT_S)
    assert amounts(tenants) == {}


def test_machines_are_wanted_beside_others_that_stay_and_not_for_a_moments_seeming():
    tenants = Tenants()
    tenants.look(TWO, unused(3, 1), [], 0.0)
    assert tenants.lasting() == []
    tenants.look(TWO, unused(4, 2), [], 1.0)
    assert tenants.lasting() == [Shape(1, 2, 0)]


def test_admission_goes_beside_them_and_gives_up_idle_gangs_for_room_that_they_leave():
    tenants = Tenants()
    idle = Held("gang-1", Shape(1, 4, 0), ("b",), idle=True)
    tenants.look(TWO, unused(0, 0, gpus=0), [idle], 0.0)
    waiting = Waiting(7, Shape(1, 2, 0))
    decided = admit([waiting], [idle, *tenants.held()], TWO)
    assert decided == [Retire("gang-1"), Start(7, placement=("b",))]


def test_what_waits_for_others_keeps_nobody_waiting_until_its_own_search_is_in_its_way():
    """They may never leave."""
    nodes = [Node("a", 1), Node("b", 1)]
    large, small = Waiting(1, Shape(2, 1, 0)), Waiting(2, Shape(1, 1, 0), since=1.0)
    tenants = Tenants()
    for now in (0.0, 1.0):
        tenants.look(nodes, {"b": Node("b", 1)}, [], now)
    held = list(tenants.held())
    assert admit([large, small], held, nodes, now=1.0) == [Start(2, placement=("b",))]
    assert kinds([large, small], held, nodes) == {1: "no_room", 2: "next"}

    on_b = Held("gang-1", small.shape, ("b",), idle=False)
    tenants.look(nodes, {"a": Node("a", 1)}, [on_b], 2.0)
    held = [on_b, *tenants.held()]
    assert admit([large, small], held, nodes, now=2.0) == []
    assert kinds([large, small], held, nodes) == {1: "reserved", 2: "behind"}


def test_a_reservation_outlives_the_moment_in_which_a_gang_before_it_leaves_its_place():
    """Ray lets go of it a little later, so that somebody else seems to be there."""
    nodes = [Node("a", 1), Node("b", 1)]
    large, small = Waiting(1, Shape(2, 1, 0)), Waiting(2, Shape(1, 1, 0), since=1.0)
    on_b, tenants = Held("gang-1", small.shape, ("b",), idle=False), Tenants()
    tenants.look(nodes, {"a": Node("a", 1)}, [on_b], 0.0)
    tenants.look(nodes, {"a": Node("a", 1)}, [], 1.0)
    held = list(tenants.held())
    assert admit([large, small], held, nodes, now=1.0) == []
    assert kinds([large, small], held, nodes) == {1: "reserved", 2: "behind"}


def kinds(queue: list[Waiting], held: list[Held], nodes: list[Node]) -> dict[int, str]:
    return {number: wait.kind for number, wait in waits(queue, held, nodes, 1.0).items()}
