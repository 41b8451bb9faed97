"""Trials of a second or less, and gangs of real worker processes to run them on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mptune.paths import free_port
from mptune.spec.schema import Resources, Score, Training
from mptune.training.loop import Loop
from mptune.training.worker import Worker
from mptune.trial import Event, Prepared, PrepareRequest, Rung, StopReason, TrialSpec
from tests import objects as objects

LENGTH, SYMBOLS = 16, 11
SCORE = Score(sequences=40, forwards=2, rates=(0.25, 0.5), rung_sequences=16, batch_size=16)
DEADLINE_S = 60

NO_MEMORY = 13
"""Number of the trial of which rank 1 of the session's pair runs out of memory, at step 3."""


@dataclass
class Script:
    """A control that says what the test says; pickled to rank 0."""

    stop_at: int | None = None
    reason: StopReason = "interrupted"
    go: bool = True
    asked: int = 0

    def stop_requested(self) -> StopReason | None:
        self.asked += 1
        return self.reason if self.asked == self.stop_at else None

    def go_on(self, rung: Rung) -> bool:
        return self.go


def data_section(folder: Path) -> dict[str, Any]:
    """A noisy cycle through the symbols, a tenth of it missing."""
    rng = np.random.default_rng(0)
    start_N1, noise_ND = rng.integers(SYMBOLS, size=(400, 1)), rng.random((400, LENGTH))
    tokens_ND = (start_N1 + np.arange(LENGTH)) % SYMBOLS
    tokens_ND = np.where(noise_ND < 0.2, rng.integers(SYMBOLS, size=tokens_ND.shape), tokens_ND)
    tokens_ND[:, -2:][noise_ND[:, -2:] > 0.5] = -1
    source = folder / "cycle.npy"
    np.save(source, tokens_ND)
    return {"kind": "array", "source": str(source), "length": LENGTH, "heldout": 0.25}


def request(folder: Path, score: Score = SCORE) -> PrepareRequest:
    return PrepareRequest(
        data=data_section(folder),
        score=score,
        cache=str(folder / "cache"),
        plan=str(folder / "plan.npz"),
    )


def trial(
    prepared: Prepared, data: dict[str, Any], directory: Path, workers: int = 1, **changes: Any
) -> TrialSpec:
    """A trial of 24 steps of 32 sequences; `training` holds changes of that section."""
    training = {
        "budget_tokens": 24 * 32 * LENGTH,
        "batch_size": 32,
        "optimizer": {"learning_rate": 1e-2},
        **changes.pop("training", {}),
    }
    fields: dict[str, Any] = {
        "study": "search",
        "number": 7,
        "policy_label": "test",
        "size_label": "tiny",
        "seed": 3,
        "model": {"family": "bert", "width": 16, "depth": 1, "heads": 2},
        "policy": {"kind": "fixed", "rate": 0.3},
        "score": SCORE,
        **changes,
    }
    return TrialSpec(
        data=data,
        training=Training.model_validate(training),
        resources=Resources(workers=workers),
        prepared=prepared,
        directory=str(directory),
        **fields,
    )


def run_out_of_memory() -> None:
    """Make this rank, if it is rank 1, fail in that trial."""
    forward = Loop._forward

    def failing(loop: Loop, *arguments: Any) -> Any:
        if (loop.inputs.number, loop.ranks.rank, loop.spent.steps) == (NO_MEMORY, 1, 3):
            raise torch.OutOfMemoryError("too large")
        return forward(loop, *arguments)

    Loop._forward = failing  # type: ignore[method-assign]


class Gang:
    """Worker processes that stay up for many trials, as a dispatcher keeps them.

    `begin` is called in each of them first.
    """

    def __init__(self, workers: int, begin: Callable[[], None] | None = None) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self._orders = [context.Queue() for _ in range(workers)]
        self._events = [context.Queue() for _ in range(workers)]
        self._processes = [
            context.Process(
                target=_serve, args=(rank, workers, port, orders, events, begin), daemon=True
            )
            for rank, (orders, events) in enumerate(zip(self._orders, self._events, strict=True))
        ]
        for process in self._processes:
            process.start()

    def run(self, spec: TrialSpec, control: Script | None = None) -> list[Event]:
        """Rank 0's events; the other ranks must end too, and have none."""
        for orders in self._orders:
            orders.put((spec, control or Script()))
        first, *others = [events.get(timeout=DEADLINE_S) for events in self._events]
        assert not any(others)
        return first

    def close(self) -> None:
        for orders in self._orders:
            orders.put(None)
        for process in self._processes:
            process.join(10)
            process.kill()


def _serve(
    rank: int, workers: int, port: int, orders: Any, events: Any, begin: Callable[[], None] | None
) -> None:
    if begin is not None:
        begin()
    worker = Worker(rank, workers, rank)
    worker.join("127.0.0.1", port)
    while (order := orders.get()) is not None:
        events.put(list(worker.run(*order)))
    worker.close()
