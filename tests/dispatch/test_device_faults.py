"""After a fault of a GPU its node is avoided: the pool of gangs, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mptune.dispatch import ray_private
from mptune.dispatch.faults import GangLost
from mptune.dispatch.lifecycle import GangState
from mptune.dispatch.placement import ClusterNode, Shape
from mptune.dispatch.ray_dispatcher import GangPool
from mptune.trial import Failed

PAIR = Shape(2, 1, 1)


@pytest.fixture(autouse=True)
def none_leaves(monkeypatch):
    monkeypatch.setattr(ray_private, "leaving_nodes", set)


def after(lost, nodes="abc", reported=None, trial=True):
    """Where the next gang of this kind would go, once one on nodes a and b was lost."""
    cluster = SimpleNamespace(
        nodes=lambda: [ClusterNode(name, 4, 1) for name in nodes],
        unused=lambda: {name: ClusterNode(name, 4, 1) for name in nodes},
        head=SimpleNamespace(is_away=lambda: False),
    )
    pool = GangPool(cluster, "", "", shared=True)
    pool.update_nodes()
    spec = SimpleNamespace(number=1, directory="/nowhere")
    gang = SimpleNamespace(
        name="gang-1",
        shape=PAIR,
        placement=("a", "b"),
        trial=SimpleNamespace(spec=spec, reported=reported) if trial else None,
        state=GangState.RUNNING,
        kill=lambda: None,
    )
    pool.gangs["gang-1"] = gang
    pool.lose(gang, lost)
    pool.update_nodes()
    return pool.free().place(PAIR)


@pytest.mark.parametrize("trial", [True, False])
def test_a_node_with_a_broken_gpu_is_avoided(trial):
    broken = GangLost("device_fault", "rank 1 of gang-1: RuntimeError: CUDA error: uncorrectable")
    assert set(after(broken, trial=trial)) == {"a", "c"}


def test_other_faults_avoid_nothing():
    assert set(after(GangLost("worker_died", "rank 1 of gang-1 died"))) == {"a", "b"}


def test_what_rank_0_reported_before_counts():
    reported = Failed(number=1, reason="device_fault", detail="rank 0: CUDA error: unknown error")
    assert set(after(GangLost("stalled", "rank 1"), reported=reported)) == {"b", "c"}


def test_without_other_nodes_the_trial_goes_on_there():
    broken = GangLost("device_fault", "rank 1 of gang-1: CUDA error: uncorrectable")
    assert set(after(broken, nodes="ab")) == {"a", "b"}


def test_where_the_rank_is_not_known_all_nodes_are_avoided():
    assert set(after(GangLost("device_fault", "CUDA error: unknown error"), nodes="abcd")) == {
        *"cd"
    }
