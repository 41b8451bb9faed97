"""One rank of a gang: runs trials in turn, and replays one from its JSON file.

    python -m mptune.worker runs/x/trials/0007/trial.json

A trial is a pure function of its `TrialSpec`; on CPU, with the same number of workers, the same
spec gives the same result bit for bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from mptune import spec
from mptune.errors import InputError
from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.trial import (
    Control,
    Cost,
    Event,
    Failed,
    Finished,
    Prepared,
    PrepareRequest,
    Rung,
    Scoring,
    Started,
    Stopped,
    StopReason,
    TrialResult,
    TrialSpec,
)

if TYPE_CHECKING:
    from torch import nn

    from mptune.training.loop import Inputs, Loop
    from mptune.training.ranks import Ranks
    from mptune.training.scoring import HeldOut, Scorer

VERSIONS_OF = ("mptune", "torch", "deepspeed", "transformers", "numpy")


class Worker:
    """One rank. It lives as long as its gang and runs many trials in turn.

    `join` and what follows it import torch; making a worker is cheap.
    """

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._ranks: Ranks | None = None
        self._opened: tuple[tuple[object, ...], HeldOut] | None = None

    def join(self, master_addr: str, master_port: int) -> None:
        """Meet the other ranks; blocks until all are there."""
        from mptune.training import engine

        self._ranks = engine.join(
            self.rank, self.world_size, self.local_rank, master_addr, master_port
        )

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Make the token table, and freeze the scoring plan or check the one that stands.

        Raises:
            InputError: the data is missing or broken, or the plan belongs to other data.
        """
        from mptune.lml import LMLPlan
        from mptune.training.scoring import HeldOut

        path = Path(request.plan)
        try:
            table = spec.build("data", request.data).prepare(Path(request.cache))
            plan = LMLPlan.load(path) if path.exists() else None
            heldout = HeldOut.select(table, request.score, plan)
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if plan is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            heldout.plan.save(path)
        return _prepared(heldout, path)

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """Run one trial, on all ranks at once. Rank 0 yields its events, the others none.

        A failure that all ranks know of ends `run` on all of them, and rank 0 yields `Failed`. One
        that only this rank knows of does so on rank 0 and is raised on the others; its peers may
        then wait for it in vain, and the gang is to be ended.
        """
        journal = _Journal(trial, self.rank)
        try:
            for event in self._run(trial, control):
                yield from journal.note(event)
        except Exception as error:
            yield from journal.note(journal.failure(error))

    def memory_mb(self) -> float:
        """Resident memory of this process, MB."""
        import psutil

        return float(psutil.Process().memory_info().rss) / 1e6

    def close(self) -> None:
        """Leave the gang."""
        from mptune.training import engine

        self._opened = None
        engine.leave()

    def _run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """The trial's events on this rank."""
        began = time.monotonic()
        with ExitStack() as stack:
            inputs, loop, scorer = self._set_up(trial, stack)
            yield self._started(inputs, loop)
            yield from loop.run(control)
            if loop.stopped is not None:
                if loop.stopped == "pruned":
                    loop.checkpoints.remove()
                steps = loop.spent.steps
                yield Stopped(number=trial.number, reason=loop.stopped, step=steps)
                return
            yield Scoring(number=trial.number)
            result = self._result(trial, loop, scorer, began)
            loop.checkpoints.remove()
        if result is not None:
            yield Finished(number=trial.number, result=result)

    def _set_up(self, trial: TrialSpec, stack: ExitStack) -> tuple[Inputs, Loop, Scorer]:
        """Everything a trial runs with; what goes wrong before the first collective is shared."""
        from mptune.training import engine
        from mptune.training.checkpoint import Checkpoints
        from mptune.training.loop import Loop
        from mptune.training.scoring import Scorer

        ranks = self._joined()
        heldout, inputs, module = self._together(lambda: self._open_all(trial))
        made = stack.enter_context(engine.engine(module, trial.training, ranks))
        scorer = Scorer(made, heldout, ranks)
        directory = TrialDirectory(Path(trial.directory))
        checkpoints = Checkpoints(directory.checkpoint, trial.fingerprint(), ranks)
        return inputs, Loop(inputs, made, ranks, checkpoints, scorer.rung), scorer

    def _joined(self) -> Ranks:
        if self._ranks is None:
            raise RuntimeError("the worker has not joined its gang")
        return self._ranks

    def _together[T](self, make: Callable[[], T]) -> T:
        """What `make` gives, unless it failed on any rank: then all ranks raise."""
