"""What the workers of a gang will compute on, found out without taking any of it.

A GPU says how much memory it has through NVML, to whoever asks on its node. So a process that holds
no GPU asks: this one on its own machine, a task of Ray on the other nodes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from mptune.dispatch.placement import ClusterNode, FreeResources, Shape
from mptune.paths import node_bytes
from mptune.spec.schema import Resources
from mptune.trial import Device

NVML = ("pynvml", "ray._private.thirdparty.pynvml")
"""NVIDIA's own binding where it is installed, and the one that Ray brings."""

SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")

SMI_TIMEOUT_S = 20.0

ACCELERATORS: Mapping[str, float] = {
    "T4": 15e9, "P4": 8e9, "P100": 16e9, "V100": 16e9, "K80": 12e9, "A10G": 24e9, "L4": 24e9,
    "L40S": 48e9, "A100": 40e9, "A100-40G": 40e9, "A100-80G": 80e9, "H100": 80e9, "H20": 96e9,
    "GH200": 96e9, "H200": 141e9, "B200": 180e9,
}  # fmt: skip
"""Bytes of Ray's accelerator types, of which the smallest kind; makers' data sheets."""


@dataclass(frozen=True)
class Gpu:
    name: str
    bytes: float


@dataclass(frozen=True)
class Machine:
    """Memory of a node, and its GPUs; `bytes` is None where it is not known."""

    bytes: float | None = None
    gpus: tuple[Gpu, ...] = ()

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """Inverse of `as_json`."""
        found = json.loads(text)
        return cls(found["bytes"], tuple(Gpu(**gpu) for gpu in found["gpus"]))


def this_machine() -> Machine:
    """The machine or container that this process is in; its GPUs are not taken."""
    return Machine(node_bytes(), tuple(gpus()))


def gpus() -> list[Gpu]:
    """The GPUs of this machine, whoever may use them; none where nobody can tell."""
    for library in NVML:
        with suppress(Exception):  # no library, no driver, no permission: the next may know
            return list(_by_nvml(import_module(library)))
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(
            SMI, capture_output=True, text=True, check=True, timeout=SMI_TIMEOUT_S
        ).stdout
        return [_of_line(line) for line in said.splitlines() if line.strip()]
    return []


def _by_nvml(nvml: Any) -> Iterator[Gpu]:
    nvml.nvmlInit()
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(handle)
            words = name.decode() if isinstance(name, bytes) else str(name)
            yield Gpu(words, float(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    finally:
        nvml.nvmlShutdown()


def _of_line(line: str) -> Gpu:
    """One line of `SMI`: a name and MiB."""
    name, _, mebibytes = line.rpartition(",")
    return Gpu(name.strip(), float(mebibytes) * 2**20)


def of_accelerator(resources: Mapping[str, float]) -> tuple[Gpu, ...]:
    """The GPU that a node's resources name, as Ray's `accelerator_type:A100`, if it is known."""
    types = (key.partition(":")[2] for key in resources if key.startswith("accelerator_type:"))
    return tuple(Gpu(name, ACCELERATORS[name]) for name in types if name in ACCELERATORS)


def device(
    resources: Resources, nodes: Iterable[ClusterNode], machines: Mapping[str, Machine]
) -> Device:
    """The largest that a worker of such a gang could get on these nodes: more is too much anywhere.

    On a CPU the ranks of the gang that fit on one node share its memory. What the spec says of the
    memory is believed; what no node tells is not known.
    """
    kind = "cuda" if resources.gpus_per_worker else "cpu"
    if resources.memory_gb is not None:
        stated = {"bytes": 1e9 * resources.memory_gb, "words": "a worker (resources.memory_gb)"}
        return Device.model_validate({"kind": kind, **stated})
    kinds = {(node.cpus, node.gpus, machines.get(node.id, Machine())) for node in nodes}
    found = [one for of_kind in kinds if (one := _one(resources, *of_kind)) is not None]
    if any(one.bytes is None for one in found):
        return UNKNOWN[kind]
    return max(found, key=lambda one: one.bytes or 0.0, default=UNKNOWN[kind])


def _one(resources: Resources, cpus: float, gpus: float, machine: Machine) -> Device | None:
    """What a worker has on a node of this kind; None if the node takes no such worker."""
    workers = FreeResources.of([ClusterNode("", cpus, gpus)]).count_workers(Shape.of(resources))
    if not workers:
        return None
    if resources.gpus_per_worker:
        return _of_gpu(resources.gpus_per_worker, machine)
    return _of_node(min(resources.workers, workers), machine)


UNKNOWN = {
    "cpu": Device(kind="cpu", bytes=None, words="a worker"),
    "cuda": Device(kind="cuda", bytes=None, words="a GPU"),
}


def _of_node(ranks: int, machine: Machine) -> Device:
    if machine.bytes is None:
        return UNKNOWN["cpu"]
    words = "the node" if ranks == 1 else f"a worker (one of {ranks} on a node)"
    return Device(kind="cpu", bytes=machine.bytes / ranks, words=words)


def _of_gpu(each: float, machine: Machine) -> Device:
    """A worker of less than one GPU has its share of it."""
    if not machine.gpus:
        return UNKNOWN["cuda"]
    gpu, share = max(machine.gpus, key=lambda one: one.bytes), min(1.0, each)
    words = gpu.name if share == 1 else f"a {share:g} share of {gpu.name}"
    return Device(kind="cuda", bytes=share * gpu.bytes, words=words)
