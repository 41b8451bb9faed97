"""The mean of the ranks' gradients, in memory that the ranks of one machine share.

Gloo sends them over the loopback: 8 ms for 1.5 million values of two ranks, where this takes 2
(measured on an EPYC).

The memory has no name. Rank 0 makes an anonymous file, which the others open as /proc/PID/fd/N: it
is gone with the last of them, however they end. They meet in the process group's barrier, which
notices a lost peer as every other collective does.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from mptune.training.ranks import Ranks

Layout: TypeAlias = tuple[torch.dtype, tuple[torch.Size, ...]]


@dataclass(frozen=True)
class Place:
    """An open file of another process.

    Attributes:
        machine: the kernel and the process namespace in which its path means that file.
        path: below /proc.
    """

    machine: tuple[str, str]
    path: str


def shared_memory(ranks: Ranks, size: int) -> mmap.mmap | None:
    """Memory of that many bytes, the same on every rank; None unless all are on one machine.

    To be called on every rank.
    """
    with ExitStack() as opened:
        place = ranks.from_first(_offered(size, opened) if ranks.first else None)
        memory = _mapped(place, size)
        everyone = all(ranks.gathered(memory is not None))
    return memory if everyone else None


def _offered(size: int, opened: ExitStack) -> Place | None:
    """An anonymous file whose memory is set apart; None where there is none to be had."""
    try:
        file = os.memfd_create("mptune-gradients")
        opened.callback(os.close, file)
        os.posix_fallocate(file, 0, size)
        return Place(_machine(), f"/proc/{os.getpid()}/fd/{file}")
    except (OSError, AttributeError):
        return None


def _mapped(place: Place | None, size: int) -> mmap.mmap | None:
    """That file's memory; None if it is another machine's, or may not be opened."""
    try:
        if place is None or place.machine != _machine():
            return None
        with open(place.path, "r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None


def _machine() -> tuple[str, str]:
    """This boot of this kernel, and the namespace that process ids are counted in."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(), os.readlink("/proc/self/ns/pid")


class Rows:
    """What every rank gives, and the mean of it.

    Args:
        memory: for a row of each rank and one of the mean.
        layout: of the tensors that a row holds, one after the other.
        ranks: this process's place.
    """

    def __init__(self, memory: mmap.mmap, layout: Layout, ranks: Ranks) -> None:
        kind, shapes = layout
        *rows, mean = torch.frombuffer(memory, dtype=kind).chunk(ranks.world_size + 1)
        self._share = 1 / ranks.world_size
        self._mine = _views(rows[ranks.rank], shapes)
        self._mean = _views(mean, shapes)
        slices = [row.tensor_split(ranks.world_size)[ranks.rank] for row in (*rows, mean)]
        self._first, self._second, *self._others, self._total = slices

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks.

        Every value is summed by one rank in the order of the ranks, so all ranks have the same
        bits in every run. Nobody can be reading what the next call overwrites: its row is read
        only before the second barrier, and the mean is written only after the next first one.
        """
        for tensor, mine in zip(tensors, self._mine, strict=True):
            torch.mul(tensor, self._share, out=mine)
        dist.barrier()
        torch.add(self._first, self._second, out=self._total)
        for other in self._others:
            self._total.add_(other)
        dist.barrier()
        for tensor, mean in zip(tensors, self._mean, strict=True):
            tensor.copy_(mean)


def _views(row: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = torch.split(row, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class SharedMean:
    """Averages tensors over the two or more ranks of a gang, where they share memory.

    Memory is taken for every layout of tensors that comes along, and kept.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._rows: dict[Layout, Rows | None] = {}

    def average(self, tensors: Sequence[Tensor]) -> bool:
        """Replace each tensor by its mean; False, with nothing done, if no memory can be shared.

        To be called on every rank, with tensors of one type and the same shapes.
        """
        layout = tensors[0].dtype, tuple(tensor.shape for tensor in tensors)
        if layout not in self._rows:
            self._rows[layout] = self._made(layout)
        rows = self._rows[layout]
        if rows is not None:
            rows.average(tensors)
        return rows is not None

    def _made(self, layout: Layout) -> Rows | None:
        kind, shapes = layout
        values = sum(shape.numel() for shape in shapes)
        memory = shared_memory(self._ranks, values * kind.itemsize * (self._ranks.world_size + 1))
        return None if memory is None else Rows(memory, layout, self._ranks)
