"""What the ranks of a trial exchange, apart from the gradients that DeepSpeed averages itself.

Gloo sends gradients over the loopback: 8 ms for 1.5 million values of two ranks, where `SharedMean`
takes 2 ms in memory that the ranks share (measured on an EPYC).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mptune import errors as faults
from mptune.errors import FaultReason, MptuneError, NonFiniteLoss, one_line
from mptune.lml import NonFiniteLogProb
from mptune.paths import node_bytes
from mptune.trial import StopReason

T = TypeVar("T")

Layout: TypeAlias = tuple[torch.dtype, tuple[torch.Size, ...]]
"""Type and shapes of the tensors that a row holds, one after the other."""

CPU = torch.device("cpu")

STOPS: tuple[StopReason | None, ...] = (None, "pruned", "paused", "interrupted", "preempted")
"""Ranks send rank 0's stop reason as its index; any rank may be preempted."""


class AgreedFailure(MptuneError):
    """A failure on some rank that every rank knows of; its cause is the error of this rank."""

    def __init__(self, reason: FaultReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class StoppedInScoring(Exception):
    """Raised on every rank, between the same two batches."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks. With one rank nothing is communicated."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def overlaps(self) -> bool:
        """Whether the host can go on while the device works."""
        return self.device.type == "cuda"

    def memory_bytes(self) -> float:
        """Memory of this rank's GPU; of the whole machine or container without one."""
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory)
        return node_bytes()

    def stop_votes(self, reason: StopReason | None) -> tuple[float, float]:
        """What this rank, asked to stop for `reason`, adds to two sums over the ranks."""
        index = STOPS.index(reason) if self.first and reason != "preempted" else 0
        return float(index), float(reason == "preempted")

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def total_later(self, values: Tensor) -> Callable[[], NDArray[np.float64]]:
        """Begin to sum over the ranks, in place; the returned function waits for the sum."""
        if self.overlaps or self.world_size == 1:
            read = _read_later(self.total(values))
            return lambda: read().numpy()
        work = dist.all_reduce(values, async_op=True)

        def total() -> NDArray[np.float64]:
            work.wait()
            return values.numpy()

        return total

    def later(self, value: Tensor | None) -> Callable[[], float | None]:
        """A number that the device is still computing; the returned function waits for it."""
        if value is None:
            return lambda: None
        read = _read_later(value)
        return lambda: float(read())

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        box: list[Any] = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        received: T = box[0]
        return received

    def gathered(self, value: T) -> tuple[T, ...]:
        """Every rank's value, on every rank."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return tuple(values)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise `AgreedFailure` on every rank if the block fails on any of them."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.raise_together(error)

    def raise_together(self, error: Exception | None) -> None:
        """Raise `AgreedFailure` on every rank if there is an error on any of them."""
        mine = None if error is None else (reason_of(error), one_line(error))
        of_ranks = self.gathered(mine)
        for rank, fault in enumerate(of_ranks):
            if fault is not None:
                where = "" if set(of_ranks) == {fault} else f"rank {rank}: "
                raise AgreedFailure(fault[0], where + fault[1]) from error


def _read_later(values: Tensor) -> Callable[[], Tensor]:
    """Copy to the host; the returned function waits until the device has come to this point."""
    copy = values.to("cpu", non_blocking=True)
    if values.device.type != "cuda":
        return lambda: copy
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def read() -> Tensor:
        done.synchronize()
        return copy

    return read


def agreed_stop(index: float, preempted: float) -> StopReason | None:
    """The stop reason that the sums of all ranks' `stop_votes` amount to."""
    return STOPS[int(index)] or ("preempted" if preempted else None)


def is_agreed(error: Exception) -> bool:
    """Whether every rank raised for this reason, so that none waits for another."""
    return isinstance(error, (AgreedFailure, NonFiniteLoss, NonFiniteLogProb))


def reason_of(error: Exception) -> FaultReason:
    """Why the trial failed: the reason that the ranks agreed on, or that of this rank's error."""
    if isinstance(error, AgreedFailure):
        return error.reason
    return "non_finite_score" if isinstance(error, NonFiniteLogProb) else faults.reason_of(error)


# --- gradients in shared memory ------------------------------------------------------------------


def shared_memory(ranks: Ranks, size: int) -> mmap.mmap | None:
    """Memory of `size` bytes, the same on every rank; None unless all are on one machine.

    It has no name: rank 0 makes an anonymous file, which the others open as /proc/PID/fd/N, and it
    is gone when the last of them ends. Call it on every rank.
    """
    offer, memory = None, None
    with ExitStack() as opened:
        if ranks.first:
            with suppress(OSError, AttributeError):
                file = os.memfd_create("mptune-gradients")
                opened.callback(os.close, file)
                os.posix_fallocate(file, 0, size)
                offer = _machine(), f"/proc/{os.getpid()}/fd/{file}"
        offer = ranks.from_first(offer)
        with suppress(OSError):
            if offer is not None and offer[0] == _machine():
                with open(offer[1], "r+b") as opened_file:
                    memory = mmap.mmap(opened_file.fileno(), size)
        everywhere = all(ranks.gathered(memory is not None))
    return memory if everywhere else None


def _machine() -> tuple[str, str]:
    """This boot of this kernel, and the namespace that process ids are counted in."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(), os.readlink("/proc/self/ns/pid")


class SharedRows:
    """A row of gradients per rank in shared memory, and one for their mean.

    Args:
        memory: `world_size + 1` rows.
        layout: of a row.
        ranks: this process's place.
    """

    def __init__(self, memory: mmap.mmap, layout: Layout, ranks: Ranks) -> None:
        dtype, shapes = layout
        *rows, mean = torch.frombuffer(memory, dtype=dtype).chunk(ranks.world_size + 1)
        self._share = 1 / ranks.world_size
        sizes = [shape.numel() for shape in shapes]
        self._mine, self._mean = (
            [part.view(shape) for part, shape in zip(torch.split(row, sizes), shapes, strict=True)]
            for row in (rows[ranks.rank], mean)
        )
        slices = [row.tensor_split(ranks.world_size)[ranks.rank] for row in (*rows, mean)]
        self._first, self._second, *self._others, self._total = slices

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks.

        The ranks meet in the process group's barrier, which notices a lost peer as every other
        collective does. One rank sums a value in the order of the ranks, so all ranks have the same
        bits in every run. No rank can be reading what the next call overwrites: its row is read
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


class SharedMean:
    """Averages tensors over the two or more ranks of a gang, if they share memory.

    Keeps one shared memory per layout of tensors.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._rows: dict[Layout, SharedRows | None] = {}

    def average(self, tensors: Sequence[Tensor]) -> bool:
        """Replace each tensor by its mean; False, with nothing done, if no memory can be shared.

        Call it on every rank, with tensors of one type and the same shapes.
        """
        dtype, shapes = layout = tensors[0].dtype, tuple(tensor.shape for tensor in tensors)
        if layout not in self._rows:
            values = sum(shape.numel() for shape in shapes) * (self._ranks.world_size + 1)
            memory = shared_memory(self._ranks, values * dtype.itemsize)
            self._rows[layout] = None if memory is None else SharedRows(memory, layout, self._ranks)
        rows = self._rows[layout]
        if rows is not None:
            rows.average(tensors)
        return rows is not None
