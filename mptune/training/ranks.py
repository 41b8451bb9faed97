"""What the ranks of a trial exchange, apart from the gradients that DeepSpeed averages itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mptune import errors as faults
from mptune.errors import FaultReason, MptuneError, NonFiniteLoss, one_line
from mptune.lml.estimator import NonFiniteLogProb
from mptune.models._memory import outside
from mptune.paths import node_bytes
from mptune.trial import StopReason

T = TypeVar("T")

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

    def memory_bytes(self, share: float = 1.0) -> float:
        """Memory that this rank may take: of its share of a GPU, what other processes leave.

        Without a GPU that of the whole machine or container.
        """
        if self.device.type != "cuda":
            return node_bytes()
        free, total = torch.cuda.mem_get_info(self.device)
        own = torch.cuda.memory_reserved(self.device) + outside(self.world_size)
        return min(share * total, free + own)

    def keep_to(self, share: float) -> None:
        """Let torch take no more than this share of the GPU: trials that share one are apart."""
        if self.device.type == "cuda" and 0 < share < 1:
            total = torch.cuda.mem_get_info(self.device)[1]
            least = max(share - outside(self.world_size) / total, 0.0)
            torch.cuda.set_per_process_memory_fraction(least, self.device)

    def send(self, array: NDArray[Any]) -> Tensor:
        """Begin to copy to the device, from pinned memory: the host does not wait for it."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

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
        """Rank 0's value, on every rank; see `gathered`."""
        return self.gathered(value if self.first else None)[0]

    def gathered(self, value: Any) -> tuple[Any, ...]:
        """Every rank's value, on every rank, as JSON has it: lists for tuples.

        torch's own `all_gather_object` unpickles, and so runs, what another process sends.
        """
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return (json.loads(text),)
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(text)
        dist.all_reduce(sizes)
        texts = torch.zeros(
            self.world_size, int(sizes.max()), dtype=torch.uint8, device=self.device
        )
        texts[self.rank, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        dist.all_reduce(texts)
        rows = zip(texts.cpu().numpy(), sizes.tolist(), strict=True)
        return tuple(json.loads(row[:size].tobytes()) for row, size in rows)

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
                where = "" if all(other == fault for other in of_ranks) else f"rank {rank}: "
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
