"""The in-process twin of the Ray dispatcher: one worker, in this process, one trial at a time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mptune import plugins
from mptune.dispatch import devices
from mptune.dispatch.base import (
    HARMLESS,
    WORKER,
    DispatchState,
    End,
    Runtime,
    TrialControl,
    guarded,
)
from mptune.dispatch.placement import ClusterNode
from mptune.errors import DispatchError, MptuneError, one_line, plural
from mptune.paths import free_port
from mptune.spec.schema import Resources
from mptune.status import GangStatus, QueuedTrial, Status, Wait
from mptune.trial import (
    Device,
    Event,
    Failed,
    GangChanged,
    Prepared,
    PrepareRequest,
    Rung,
    Started,
    Stopped,
    StopReason,
    TrialSpec,
)

GANG = "local"


@dataclass
class LocalTrial:
    """The trial that runs."""

    spec: TrialSpec
    control: TrialControl
    events: Iterator[Event]
    at_rung: bool = False
    """Whether it waits for a decision."""


class LocalDispatcher:
    """Runs trials in the calling process, without Ray: for debugging and for tests.

    A trial that asks for several workers runs on one with the same global batch. The trial runs
    inside `events()`, so `stop` takes effect at its next event. A worker that kills its process
    kills the search: only the Ray dispatcher survives that.
    """

    def __init__(
        self, runtime: str = WORKER, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runtime, self._clock = runtime, clock
        self._worker: Runtime | None = None
        self._trials = 0
        """Of this worker."""
        self._last_end: float | None = None
        self._queue: deque[TrialSpec] = deque()
        self._running: LocalTrial | None = None
        self._outbox: list[Event] = []
        self._changed = threading.Event()

    def warm_up(self) -> None:
        """Nothing to do: the worker is this process."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        worker = self._ready_worker(-1)
        try:
            return worker.prepare(request)
        except MptuneError:
            raise
        except Exception as error:
            raise DispatchError(f"preparing the data failed: {one_line(error)}") from error

    def capacity(self, in_flight: Sequence[Resources] = ()) -> int:
        return 1

    def device(self, resources: Resources) -> Device:
        here = ClusterNode("here", resources.cpus_per_worker, resources.gpus_per_worker)
        return devices.device(resources, [here], {"here": devices.this_machine()})

    def submit(self, trial: TrialSpec) -> None:
        self._queue.append(trial)
        self._changed.set()

    def events(self, timeout_s: float) -> list[Event]:
        if not self._outbox and not self._can_advance():
            self._changed.wait(timeout_s)
        self._changed.clear()
        if not self._outbox and self._can_advance():
            self._advance()
        out, self._outbox = self._outbox, []
        return out

    def decide(self, number: int, go_on: bool) -> None:
        if self._running and self._running.spec.number == number:
            self._running.control.decide(go_on)
            self._running.at_rung = False
            self._changed.set()

    def stop(self, number: int, reason: StopReason) -> None:
        if self._running and self._running.spec.number == number:
            self._running.control.stop(reason)
            self._running.at_rung = False
        for trial in [t for t in self._queue if t.number == number]:
            self._queue.remove(trial)
            self._outbox.append(Stopped(number=number, reason=reason, step=0))
        self._changed.set()

    def state(self) -> DispatchState:
        wait = Wait(kind="no_room", needs=1, free=0)
        queue = [
            QueuedTrial(
                number=t.number,
                policy_label=t.policy_label,
                size_label=t.size_label,
                workers=1,
                wait=wait,
            )
            for t in self._queue
        ]
        gang = GangStatus(
            name=GANG,
            workers=1,
            cpus_per_worker=1,
            gpus_per_worker=0,
            nodes=(socket.gethostname(),),
            state="busy" if self._running else "idle",
            trial=self._running.spec.number if self._running else None,
            trials=self._trials,
        )
        return DispatchState((gang,) if self._worker else (), tuple(queue))

    def publish(self, status: Status) -> None:
        """Nothing to do: no metrics are collected here."""

    def close(self) -> None:
        self._queue.clear()
        self._running = None
        self._drop_worker("closed")

    def _can_advance(self) -> bool:
        return not self._running.at_rung if self._running else bool(self._queue)

    def _advance(self) -> None:
        """Start the next trial if none runs, and run to the next event."""
        if self._running is None:
            trial = self._queue.popleft()
            if self._trials >= trial.resources.trials_per_gang:
                self._drop_worker(f"remade after {plural(self._trials, 'trial')}")
            try:
                worker = self._ready_worker(trial.number)
            except DispatchError as error:
                self._outbox.append(Failed(number=trial.number, reason="error", detail=str(error)))
                return
            self._trials += 1
            control = TrialControl()
            self._running = LocalTrial(trial, control, guarded(worker, trial, control))
        event = next(self._running.events)
        if isinstance(event, Started):
            turnaround_s = None if self._last_end is None else self._clock() - self._last_end
            known = {"gang": GANG, "pids": (os.getpid(),), "turnaround_s": turnaround_s}
            event = event.model_copy(update=known)
        self._outbox.append(event)
        self._running.at_rung = isinstance(event, Rung)
        if isinstance(event, End):
            self._running, self._last_end = None, self._clock()
        if isinstance(event, Failed) and event.reason not in HARMLESS:
            self._drop_worker(event.detail, event.number)

    def _ready_worker(self, number: int) -> Runtime:
        if self._worker is None:
            self._report("starting", number, "in this process")
            try:
                worker: Runtime = plugins.load_object(self._runtime)(0, 1)
                worker.join("127.0.0.1", free_port())
            except Exception as error:
                self._report("gone", number, one_line(error))
                raise DispatchError(f"the worker did not start: {one_line(error)}") from error
            self._worker, self._trials, self._last_end = worker, 0, None
            self._report("ready", number, "1 worker")
        return self._worker

    def _drop_worker(self, why: str, number: int = -1) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            self._report("gone", number, why)

    def _report(
        self, state: Literal["starting", "ready", "gone"], number: int, detail: str
    ) -> None:
        self._outbox.append(GangChanged(number=number, gang=GANG, state=state, detail=detail))
