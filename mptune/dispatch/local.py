"""The in-process twin of the Ray dispatcher: one worker, here, one trial at a time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mptune import plugins
from mptune.dispatch import devices
from mptune.dispatch.base import DispatchState
from mptune.dispatch.devices import Machine
from mptune.dispatch.placement import ClusterNode
from mptune.dispatch.runtime import (
    HARMLESS,
    WORKER,
    End,
    Runtime,
    TrialControl,
    guarded,
    resident_bytes,
)
from mptune.errors import DispatchError, MptuneError, one_line
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
class _Running:
    trial: TrialSpec
    control: TrialControl
    events: Iterator[Event]
    undecided: bool = False


@dataclass
class _Gang:
    """The one worker, and what it has done."""

    worker: Runtime
    trials: int = 0
    last_end: float | None = field(default=None)


class LocalDispatcher:
    """Runs trials in the calling process, with no Ray: for debugging and for tests.

    A trial that asks for several workers runs on one with the same global batch. The trial runs
    inside `events()`, so `stop` takes effect at its next event. A worker that kills its process
    kills the search: only the Ray dispatcher survives that.
    """

    def __init__(self, runtime: str = WORKER) -> None:
        self._runtime = runtime
        self._gang: _Gang | None = None
        self._queue: deque[TrialSpec] = deque()
        self._running: _Running | None = None
        self._outbox: list[Event] = []
        self._something_to_do = threading.Event()

    def warm_up(self) -> None:
        """The worker is this process: it would only be in the way."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        gang = self._ready_gang(-1)
        try:
            return gang.worker.prepare(request)
        except MptuneError:
            raise
        except Exception as error:
            raise DispatchError(f"preparing the data failed: {one_line(error)}") from error

    def capacity(self, flying: Sequence[Resources] = ()) -> int:
        return 1

    def device(self, resources: Resources) -> Device:
        here = ClusterNode("here", resources.cpus_per_worker, resources.gpus_per_worker)
        return devices.device(resources, [here], {"here": self._machine})

    @cached_property
    def _machine(self) -> Machine:
        return devices.this_machine()

    def submit(self, trial: TrialSpec) -> None:
        self._queue.append(trial)
        self._something_to_do.set()

    def events(self, timeout_s: float) -> list[Event]:
        if not self._outbox and not self._can_advance():
            self._something_to_do.wait(timeout_s)
        self._something_to_do.clear()
        if not self._outbox and self._can_advance():
            self._advance()
        out, self._outbox = self._outbox, []
        return out

    def decide(self, number: int, go_on: bool) -> None:
        if self._running and self._running.trial.number == number:
            self._running.control.decide(go_on)
            self._running.undecided = False
            self._something_to_do.set()

    def stop(self, number: int, reason: StopReason) -> None:
        if self._running and self._running.trial.number == number:
            self._running.control.stop(reason)
            self._running.undecided = False
        for trial in [t for t in self._queue if t.number == number]:
            self._queue.remove(trial)
            self._outbox.append(Stopped(number=number, reason=reason, step=0))
        self._something_to_do.set()

    def state(self) -> DispatchState:
        """One gang, and a queue that only it serves."""
        wait = Wait(kind="no_room", needs=1, free=0)
        queue = (
            QueuedTrial(number=t.number, label=t.label, workers=1, wait=wait) for t in self._queue
        )
        return DispatchState((self._gang_status(),) if self._gang else (), tuple(queue))

    def publish(self, status: Status) -> None:
        """Nobody collects metrics here."""

    def address(self) -> str | None:
        return None

    def close(self) -> None:
        self._queue.clear()
        self._running = None
        self._drop_gang("closed")

    def _gang_status(self) -> GangStatus:
        assert self._gang is not None
        return GangStatus(
            name=GANG,
            workers=1,
            cpus_per_worker=1,
            gpus_per_worker=0,
            nodes=(socket.gethostname(),),
            state="busy" if self._running else "idle",
            trial=self._running.trial.number if self._running else None,
            trials=self._gang.trials,
            resident_bytes=resident_bytes(),
        )

    def _can_advance(self) -> bool:
        return not self._running.undecided if self._running else bool(self._queue)

    def _advance(self) -> None:
        if self._running is None:
            self._start(self._queue.popleft())
        if self._running is not None:
            self._pass_on(next(self._running.events), self._running)

    def _start(self, trial: TrialSpec) -> None:
        if self._gang and self._gang.trials >= trial.resources.trials_per_gang:
            self._drop_gang(f"remade after {self._gang.trials} trials")
        try:
            gang = self._ready_gang(trial.number)
        except DispatchError as error:
            self._outbox.append(Failed(number=trial.number, reason="error", detail=str(error)))
            return
        gang.trials += 1
        control = TrialControl()
        self._running = _Running(trial, control, guarded(gang.worker, trial, control))

    def _pass_on(self, event: Event, running: _Running) -> None:
        assert self._gang is not None
        if isinstance(event, Started):
            event = self._completed(event, self._gang)
        self._outbox.append(event)
        running.undecided = isinstance(event, Rung)
        if isinstance(event, End):
            self._running = None
            self._gang.last_end = time.monotonic()
        if isinstance(event, Failed) and event.reason not in HARMLESS:
            self._drop_gang(event.detail, event.number)

    def _completed(self, event: Started, gang: _Gang) -> Started:
        turnaround_s = None if gang.last_end is None else time.monotonic() - gang.last_end
        known = {"gang": GANG, "pids": (os.getpid(),), "turnaround_s": turnaround_s}
        return event.model_copy(update=known)

    def _ready_gang(self, number: int) -> _Gang:
        if self._gang is None:
            self._tell("starting", number, "in this process")
            try:
                worker: Runtime = plugins.load_object(self._runtime)(0, 1)
                worker.join("127.0.0.1", free_port())
            except Exception as error:
                self._tell("gone", number, one_line(error))
                raise DispatchError(f"the worker did not start: {one_line(error)}") from error
            self._gang = _Gang(worker)
            self._tell("ready", number, "1 worker")
        return self._gang

    def _drop_gang(self, why: str, number: int = -1) -> None:
        if self._gang is not None:
            self._gang.worker.close()
            self._gang = None
            self._tell("gone", number, why)

    def _tell(self, state: str, number: int, detail: str) -> None:
        self._outbox.append(
            GangChanged.model_validate(
                {"number": number, "gang": GANG, "state": state, "detail": detail}
            )
        )
