"""The device that a worker would get, from what nodes report."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mptune.dispatch import devices, ray_private
from mptune.dispatch.devices import Gpu, Machine, device
from mptune.dispatch.placement import ClusterNode
from mptune.spec.schema import Resources

T4, H100 = Gpu("Tesla T4", 15e9), Gpu("NVIDIA H100", 80e9)
NODES = [ClusterNode("cpus", 16), ClusterNode("small", 4, 1), ClusterNode("large", 64, 8)]
MACHINES = {
    "cpus": Machine(64e9),
    "small": Machine(16e9, (T4,)),
    "large": Machine(512e9, (H100,) * 8),
}


def gpus(**fields):
    return device(Resources(gpus_per_worker=1, **fields), NODES, MACHINES)


def test_the_largest_gpu_that_a_gang_could_get():
    found = gpus()
    assert (found.kind, found.bytes, found.words) == ("cuda", 80e9, "NVIDIA H100")
    mixed = device(Resources(gpus_per_worker=1), NODES[1:2], {"small": Machine(16e9, (T4, H100))})
    assert mixed.bytes == 80e9


def test_nodes_that_cannot_take_a_worker_do_not_count():
    nodes = [ClusterNode("small", 4, 1), ClusterNode("large", 2, 8)]
    found = device(Resources(gpus_per_worker=1, cpus_per_worker=4), nodes, MACHINES)
    assert found.bytes == 15e9


def test_a_node_that_does_not_tell_may_have_any_gpu():
    silent = MACHINES | {"small": Machine()}
    assert device(Resources(gpus_per_worker=1), NODES, silent).bytes is None


def test_a_worker_of_half_a_gpu_has_half_its_memory():
    half = device(Resources(gpus_per_worker=0.5), NODES, MACHINES)
    assert (half.bytes, half.words) == (40e9, "a 0.5 share of NVIDIA H100")


def test_ranks_share_the_memory_of_their_node():
    def of(workers):
        return device(Resources(workers=workers), NODES[:1], MACHINES)

    assert (of(1).bytes, of(1).words) == (64e9, "the node")
    assert (of(4).bytes, of(4).words) == (16e9, "a worker (one of 4 on a node)")
    assert of(64).bytes == 64e9 / 16  # sixteen fit on a node


def test_what_the_spec_says_is_believed():
    assert gpus(memory_gb=24).bytes == 24e9


def test_what_no_node_tells_is_not_known():
    bare = dict.fromkeys(MACHINES, Machine())
    for kind, workers in (("cuda", Resources(gpus_per_worker=1)), ("cpu", Resources())):
        found = device(workers, NODES, bare)
        assert (found.kind, found.bytes) == (kind, None)
        assert found.fits(1e15)


def nvml(*cards, name=lambda name: name):
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(cards),
        nvmlDeviceGetHandleByIndex=lambda index: cards[index],
        nvmlDeviceGetName=lambda card: name(card.name),
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(total=card.bytes),
    )


@pytest.mark.parametrize("name", [str, str.encode])
def test_gpus_by_nvml(monkeypatch, name):
    monkeypatch.setattr(ray_private, "nvml", lambda: nvml(T4, H100, name=name))
    assert devices.gpus() == [T4, H100]


def test_a_machine_without_a_driver(monkeypatch):
    def no_driver() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setattr(ray_private, "nvml", lambda: SimpleNamespace(nvmlInit=no_driver))
    assert devices.gpus() == []


@pytest.mark.parametrize(
    "resources",
    [
        {"workers": 2, "gpus_per_worker": 0.5},
        {"gpus_per_worker": 0.5, "by_size": {"1M": {"workers": 2}}},
    ],
)
def test_ranks_of_a_gang_do_not_share_a_gpu(resources):
    with pytest.raises(ValueError, match=r"2 workers of a 0\.5 share of a GPU each"):
        Resources.model_validate(resources)
    assert Resources(gpus_per_worker=0.5).workers == 1
