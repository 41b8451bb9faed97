"""What the ranks of a trial say to each other, apart from DeepSpeed's gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mptune import errors as faults
from mptune.errors import FaultReason, MptuneError, NonFiniteLoss, one_line
from mptune.lml import NonFiniteLogProb
from mptune.paths import node_bytes

T = TypeVar("T")


class AgreedFailure(MptuneError):
    """A failure on some rank that every rank knows of; its cause is the error of this rank."""

    def __init__(self, reason: FaultReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks. With one rank nothing is communicated."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def memory_bytes(self) -> float:
        """Memory of this rank's GPU; of the whole machine or container without one."""
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory)
        return node_bytes()

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    @property
    def overlaps(self) -> bool:
        """Whether the host can go on while the device works."""
        return self.device.type == "cuda"

    def total_later(self, values: Tensor) -> Callable[[], NDArray[np.float64]]:
        """Begin to sum over the ranks, in place; the function that is returned waits for it."""
        if self.overlaps or self.world_size == 1:
            read = self._read_later(self.total(values))
            return lambda: read().numpy()
        work = dist.all_reduce(values, async_op=True)

        def total() -> NDArray[np.float64]:
            work.wait()
            return values.numpy()

        return total

    def later(self, value: Tensor | None) -> Callable[[], float | None]:
        """A number that the device is still computing; the function returned waits for it."""
        if value is None:
            return lambda: None
        read = self._read_later(value)
        return lambda: float(read())

    def _read_later(self, values: Tensor) -> Callable[[], Tensor]:
        """What the host waits for, and no longer than until the device has come to this point."""
        copy = values.to("cpu", non_blocking=True)
        if values.device.type != "cuda":
            return lambda: copy
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def read() -> Tensor:
            done.synchronize()
            return copy

        return read

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

    def raise_together(self, error: Exception | None) -> None:
        """Raise `AgreedFailure` on every rank if there is an error on any of them."""
        mine = None if error is None else (reason_of(error), one_line(error))
        of_ranks = self.gathered(mine)
        for rank, fault in enumerate(of_ranks):
            if fault is not None:
                where = "" if set(of_ranks) == {fault} else f"rank {rank}: "
                raise AgreedFailure(fault[0], where + fault[1]) from error


def is_agreed(error: Exception) -> bool:
    """Whether every rank raised for this reason, so that none waits for another."""
    return isinstance(error, (AgreedFailure, NonFiniteLoss, NonFiniteLogProb))


def reason_of(error: Exception) -> FaultReason:
    """Why the trial failed: what the ranks agreed on, or what this one's error says."""
    if isinstance(error, AgreedFailure):
        return error.reason
    return "non_finite_score" if isinstance(error, NonFiniteLogProb) else faults.reason_of(error)
