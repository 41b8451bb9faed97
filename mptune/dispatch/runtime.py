"""The worker as a dispatcher sees it, in any process: its protocol, its control, its faults."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mptune.errors import FaultReason, one_line, reason_of
from mptune.paths import TrialDirectory, write_text
from mptune.trial import (
    Control,
    Event,
    Failed,
    Finished,
    Prepared,
    PrepareRequest,
    Rung,
    Stopped,
    StopReason,
    TrialSpec,
)

WORKER = "mptune.training.worker:Worker"
"""The runtime that trains; loaded by reference, because it is data plane."""

End = Finished | Stopped | Failed
"""How a trial ends: the last event of every trial is exactly one of these."""

HARMLESS: frozenset[FaultReason] = frozenset({"non_finite_loss", "non_finite_score", "wrong_input"})
"""Failures that a worker reports in good health: its gang goes on with the next trial."""


class Runtime(Protocol):
    """One rank. It lives as long as its gang and runs many trials in turn."""

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None: ...

    def load(self) -> None:
        """Import what trials need, while the other ranks are still on their way."""

    def join(self, master_addr: str, master_port: int) -> None:
        """Meet the other ranks; blocks until all are there."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data and freeze the plan; asked of rank 0 only."""

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """Run one trial; asked of all ranks at once, and rank 0's events count.

        The others raise what only they know to be wrong: rank 0 may be waiting for them in vain.
        """

    def device_bytes(self) -> int:
        """GPU memory that this process holds, between two trials."""

    def close(self) -> None:
        """Leave the gang."""


class TrialControl:
    """Carries the driver's decisions to one running trial, across threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decisions: deque[bool] = deque()
        self._reason: StopReason | None = None
        self._asked_at = time.monotonic()

    def stop_requested(self) -> StopReason | None:
        self._asked_at = time.monotonic()
        return self._reason

    def idle_s(self) -> float:
        """Seconds since the trial last asked, as it does in every step and scoring batch."""
        return time.monotonic() - self._asked_at

    def go_on(self, rung: Rung) -> bool:
        """Block until the driver decides; a stop request counts as going on to the next step."""
        with self._changed:
            self._changed.wait_for(lambda: self._decisions or self._reason)
            return self._decisions.popleft() if self._decisions else True

    def decide(self, go_on: bool) -> None:
        with self._changed:
            self._decisions.append(go_on)
            self._changed.notify_all()

    def stop(self, reason: StopReason) -> None:
        with self._changed:
            self._reason = reason
            self._changed.notify_all()


class Controls:
    """The control of each trial of one process, by a ticket that grows from trial to trial.

    A word may come, in another thread, before the run that it is meant for, or after its end.
    """

    def __init__(self) -> None:
        # Reentrant: a signal may ask for what runs while this very thread holds it.
        self._lock = threading.RLock()
        self._of: dict[int, TrialControl] = {}
        self._ended = 0

    def of(self, ticket: int) -> TrialControl:
        """The trial's control; one that nobody reads if the trial, or a later one, has ended."""
        with self._lock:
            if ticket <= self._ended:
                return TrialControl()
            return self._of.setdefault(ticket, TrialControl())

    def end(self, ticket: int) -> None:
        """Forget this trial and all before it."""
        with self._lock:
            self._ended = max(self._ended, ticket)
            self._of = {t: control for t, control in self._of.items() if t > self._ended}

    def all(self) -> list[TrialControl]:
        """Of the trials that run, or are about to."""
        with self._lock:
            return list(self._of.values())


def guarded(worker: Runtime, trial: TrialSpec, control: Control) -> Iterator[Event]:
    """The trial's events, with an escaped exception or a missing end turned into Failed."""
    try:
        for event in worker.run(trial, control):
            yield event
            if isinstance(event, End):
                return
    except (Exception, SystemExit) as error:
        write_traceback(trial, traceback.format_exc())
        yield Failed(number=trial.number, reason=reason_of(error), detail=one_line(error))
    else:
        yield Failed(number=trial.number, reason="error", detail="the worker ended without result")


def write_traceback(trial: TrialSpec, text: str) -> None:
    """Leave the long story of a failure in the trial's directory, if there is room for it."""
    with suppress(OSError):
        write_text(TrialDirectory(Path(trial.directory)).traceback, text)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
