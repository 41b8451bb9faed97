"""Where gangs go, and what they leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mptune.dispatch.placement import ClusterNode, FreeResources, Shape
from mptune.spec.schema import Resources


def room(*cpus: float) -> FreeResources:
    return FreeResources.of(ClusterNode("abcdef"[i], n) for i, n in enumerate(cpus))


def test_a_gang_goes_on_the_tightest_node_that_takes_it():
    assert room(4, 2, 3).place(Shape(2, 1, 0)) == ("b", "b")


def test_and_else_on_as_few_as_possible_leaving_whole_nodes_whole():
    assert room(2, 3, 1).place(Shape(5, 1, 0)) == ("b", "b", "b", "a", "a")
    assert room(8, 8, 8, 1).place(Shape(17, 1, 0)) == (*["a"] * 8, *["b"] * 8, "d")
    assert room(2, 3, 1).place(Shape(7, 1, 0)) is None


def test_gpus_and_fractions_count():
    node = FreeResources.of([ClusterNode("a", 8, 2)])
    assert node.place(Shape(2, 1, 1)) == ("a", "a")
    assert node.place(Shape(3, 1, 1)) is None
    assert room(0.3).count_workers(Shape(1, 0.1, 0)) == 3


def test_the_shape_is_what_the_resources_say():
    shape = Shape.of(Resources(workers=2, cpus_per_worker=4, gpus_per_worker=1))
    assert str(shape) == "2 workers of 4 CPU and 1 GPU"
    assert shape.weight == 2
    assert Shape(2, 4, 0).weight == 8


def test_a_gang_on_a_node_that_left_takes_nothing():
    here = room(2)
    here.take(Shape(2, 1, 0), ("gone", "a"))
    assert here.count_workers(Shape(1, 1, 0)) == 1


shapes = st.builds(Shape, st.integers(1, 5), st.sampled_from([0.5, 1, 2]), st.just(0))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.lists(shapes, max_size=6))
def test_counts_stay_true_as_gangs_come_and_go(sizes, wanted):
    nodes = [ClusterNode(f"n{i}", cpus) for i, cpus in enumerate(sizes)]
    here = FreeResources.of(nodes)
    taken = []
    for shape in wanted:
        if placement := here.place(shape):
            assert len(placement) == shape.workers
            assert here.fits_at(shape, placement)
            here.take(shape, placement)
            taken.append((shape, placement))
    for node in nodes:
        used = sum(shape.cpus * placement.count(node.id) for shape, placement in taken)
        assert used <= node.cpus
    for shape, placement in taken:
        here.give_back(shape, placement)
    for shape in wanted:
        assert here.count_workers(shape) == FreeResources.of(nodes).count_workers(shape)
