"""The interfaces of this package: `Dispatcher` for the search, `Runtime` for the workers.

With what every dispatcher needs to run trials on a `Runtime`: a control that carries decisions to
a running trial, and the guard that turns an exception into the trial's last event.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mptune.errors import FaultReason, one_line, reason_of
from mptune.paths import TrialDirectory, write_text
from mptune.spec.schema import Resources
from mptune.status import GangStatus, QueuedTrial, Status
from mptune.trial import (
    Control,
    Device,
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
"""The runtime that trains; loaded by reference, because it belongs to the data plane."""

End = Finished | Stopped | Failed
"""How a trial ends: the last event of every trial is exactly one of these."""

HARMLESS: frozenset[FaultReason] = frozenset({"non_finite_loss", "non_finite_score", "wrong_input"})
"""Failures of a trial alone: its gang goes on with the next trial."""


@dataclass(frozen=True)
class DispatchState:
    """The gangs, and the queue in the order of its turn."""

    gangs: tuple[GangStatus, ...] = ()
    queue: tuple[QueuedTrial, ...] = ()
    metrics: str | None = None
    """URL at which Prometheus finds what was published; None if it is not served."""


class DurationForecast(Protocol):
    """Predicts how long trials take; admission orders the queue and fills gaps by it."""

    def seconds(self, trial: TrialSpec) -> float | None:
        """Seconds that a whole trial takes on its gang; None if that is not known."""

    def left_s(self, trial: TrialSpec, now: float) -> float | None:
        """Seconds from `now` (monotonic) to the trial's end; None if that is not known."""


class Dispatcher(Protocol):
    """Runs trials on gangs of workers. One trial number is in flight at most once."""

    def warm_up(self) -> None:
        """Start workers that prepare data, without waiting for them."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data and freeze the plan on a worker; blocks.

        Raises:
            InputError: the data is missing or broken.
            DispatchError: no worker could be started.
        """

    def capacity(self, in_flight: Sequence[Resources] = ()) -> int:
        """How many trials can be in flight with what the cluster holds now (at least 1).

        `in_flight` are the resources of trials in flight; more fit only where these leave resources
        for the smallest gang.
        """

    def device(self, resources: Resources) -> Device:
        """The largest device that a worker of such a gang could get.

        Uses no resources, and asks every node once.
        """

    def submit(self, trial: TrialSpec) -> None:
        """Queue a trial; it starts when admitted."""

    def events(self, timeout_s: float) -> list[Event]:
        """The next events, oldest first: waits up to `timeout_s` for the first one.

        Every submitted trial ends with exactly one of Finished, Stopped or Failed.
        """

    def decide(self, number: int, go_on: bool) -> None:
        """Answer the trial's last Rung: continue, or stop as pruned."""

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a running trial to stop soon, or drop a queued one; ends in Stopped.

        A trial that has been scored meanwhile ends in Finished.
        """

    def state(self) -> DispatchState:
        """The present gangs and queue; does not block."""

    def publish(self, status: Status) -> None:
        """Export the status as metrics of the cluster, if it has any."""

    def close(self) -> None:
        """Stop everything that was started here and leave no process behind."""


class Runtime(Protocol):
    """One rank. It lives as long as its gang and runs many trials in turn."""

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None: ...

    def join(self, master_addr: str, master_port: int) -> None:
        """Connect to the other ranks; blocks until all have joined."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data and freeze the plan; called on rank 0 only."""

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """Run one trial; called on all ranks at once, and rank 0's events count.

        Another rank raises an error that only it has noticed: rank 0 may be waiting for it.
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
        self._polled_at = time.monotonic()

    def stop_requested(self) -> StopReason | None:
        """Why the trial is to stop; it asks in every step and scoring batch."""
        self._polled_at = time.monotonic()
        return self._reason

    def idle_s(self) -> float:
        """Seconds since the trial last took a step or scored a batch."""
        return time.monotonic() - self._polled_at

    def go_on(self, rung: Rung) -> bool:
        """Block until the driver decides; a stop request lets the trial reach its next step."""
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

    A decision may arrive, in another thread, before its trial runs or after it has ended.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may ask for all controls while this very thread holds it.
        self._lock = threading.RLock()
        self._of: dict[int, TrialControl] = {}
        self._ended = 0

    def of(self, ticket: int) -> TrialControl:
        """The trial's control; an unused one if the trial, or a later one, has ended."""
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
        detail = "the worker ended without a result"
        yield Failed(number=trial.number, reason="error", detail=detail)


def write_traceback(trial: TrialSpec, text: str) -> None:
    """Keep the long form of a failure in the trial's directory, if there is space for it."""
    with suppress(OSError):
        write_text(TrialDirectory(Path(trial.directory)).traceback, text)
