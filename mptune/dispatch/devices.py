"""What the workers of a gang will compute on, found out without using any of it.

Any process on a machine can ask NVML for the memory of its GPUs. So a process that holds no GPU
asks: this one on its own machine, a task of Ray on the other nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mptune.dispatch.placement import ClusterNode, FreeResources, Shape
from mptune.paths import node_bytes
from mptune.spec.schema import Resources
from mptune.trial import Device


@dataclass(frozen=True)
class Gpu:
    name: str
    bytes: float


@dataclass(frozen=True)
class Machine:
    """Memory of a node in bytes (None if not known), and its GPUs."""

    bytes: float | None = None
    gpus: tuple[Gpu, ...] = ()


@cache
def this_machine() -> Machine:
    """The machine or container that this process is in."""
    return Machine(node_bytes(), tuple(gpus()))


def has_gpus() -> bool:
    """Whether this machine seems to have a GPU of NVIDIA's; to ask NVML takes an import of Ray."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def gpus() -> list[Gpu]:
    """The GPUs of this machine, used or not; none if NVML is not available."""
    from mptune.dispatch import ray_private

    with suppress(Exception):  # no driver, no permission
        nvml = ray_private.nvml()
        nvml.nvmlInit()
        try:
            found = []
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                name = nvml.nvmlDeviceGetName(handle)
                text = name.decode() if isinstance(name, bytes) else str(name)
                found.append(Gpu(text, float(nvml.nvmlDeviceGetMemoryInfo(handle).total)))
            return found
        finally:
            nvml.nvmlShutdown()
    return []


def here(resources: Resources) -> tuple[ClusterNode, Machine]:
    """This machine as a node; its GPUs are looked for only if gangs ask for some."""
    asked = any(gang.gpus_per_worker for gang in resources.gangs())
    machine = this_machine() if asked else Machine(node_bytes())
    return ClusterNode("here", os.cpu_count() or 1, len(machine.gpus)), machine


def device(
    resources: Resources, nodes: Iterable[ClusterNode], machines: Mapping[str, Machine]
) -> Device:
    """The largest device that a worker of such a gang could get on these nodes.

    What exceeds it fits nowhere. On a CPU, the ranks of a gang that fit on one node share its
    memory. `resources.memory_gb` overrides what the nodes report. If one of the nodes on which a
    worker fits reports nothing, the size is not known.
    """
    kind, words = ("cuda", "a GPU") if resources.gpus_per_worker else ("cpu", "a worker")
    unknown = Device.model_validate({"kind": kind, "bytes": None, "words": words})
    if resources.memory_gb is not None:
        stated = {"bytes": 1e9 * resources.memory_gb, "words": "a worker (resources.memory_gb)"}
        return unknown.model_copy(update=stated)
    largest: Device | None = None
    for cpus, count, machine in {(n.cpus, n.gpus, machines.get(n.id, Machine())) for n in nodes}:
        node = FreeResources.of([ClusterNode("", cpus, count)])
        ranks = min(resources.workers, node.count_workers(Shape.of(resources)))
        if not ranks:
            continue
        if kind == "cuda" and machine.gpus:
            gpu = max(machine.gpus, key=lambda one: one.bytes)
            share = min(1.0, resources.gpus_per_worker)
            size = share * gpu.bytes
            words = gpu.name if share == 1 else f"a {share:g} share of {gpu.name}"
        elif kind == "cpu" and machine.bytes is not None:
            size = machine.bytes / ranks
            words = "the node" if ranks == 1 else f"a worker (one of {ranks} on a node)"
        else:
            return unknown
        if largest is None or size > (largest.bytes or 0.0):
            largest = unknown.model_copy(update={"bytes": size, "words": words})
    return largest or unknown
