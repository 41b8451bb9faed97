"""A gang: one Ray placement group with one long-lived worker process per rank.

The driver's side (`Gang`) does not block: every call to a member leaves an object reference in
`pending`, with what to do with its value. Whoever owns the gang waits on those references and
hands the ready ones to `collect`, which returns the trial's events or raises `GangLost`.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import ray
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mptune import __version__, plugins
from mptune.dispatch import output
from mptune.dispatch.footprint import Footprint, Growth, own_host_bytes
from mptune.dispatch.placement import PlacedGang, Placement, Shape
from mptune.dispatch.runtime import Controls, End, Runtime, TrialControl, guarded, resident_bytes
from mptune.errors import FaultReason, one_line, reason_of
from mptune.paths import TrialDirectory, free_port, write_text
from mptune.status import GangStatus
from mptune.trial import (
    Event,
    GangChanged,
    Prepared,
    PrepareRequest,
    Started,
    StopReason,
    TrialSpec,
    event_from_json,
)

START_TIMEOUT_S = 600.0
"""For importing the libraries and meeting the other ranks, once the processes run."""

PLACE_TIMEOUT_S = 15.0
"""For Ray to give the place that was planned: it does at once, or when a gang before has gone."""

NODE_LABEL = "ray.io/node-id"
"""Ray gives it to every node."""

STOP_TIMEOUT_S = 120.0
"""From a stop request to the end of the trial; a checkpoint may have to be written."""

AGREE_TIMEOUT_S = 10.0
"""From the first rank that ended a trial to the last one."""

ANSWER_TIMEOUT_S = 5.0
"""For a rank that seems to hang to say so, or to show its stacks; for a death to be known."""

MEMORY_EVERY_S = 5.0
"""Between two questions how much memory a gang has."""

LOG_TAIL_BYTES = 8000

SAME_VERSION = "install the same version on every node, or leave resources.ship_code on"

NO_MPTUNE = re.compile(r"No module named 'mptune|cannot import name .* from 'mptune")

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray writes its errors for a terminal."""


@dataclass(frozen=True)
class Hello:
    """Where a member lives."""

    pid: int
    node: str
    address: str
    port: int
    log: str
    version: str = ""
    """Of mptune, as installed there."""


@dataclass(eq=False)
class GangLost(Exception):
    """A gang cannot go on. `story` is the long form of `detail`."""

    reason: FaultReason
    detail: str
    story: str = ""


class GangOverdue(GangLost):
    """Nothing died, but what had to come did not."""


class Member:
    """One rank, in its own process.

    Ray runs the methods outside the concurrency groups in one thread of their own, in order. That
    matters: CUDA's current device and the process group belong to the thread that joined.
    """

    def __init__(self, runtime: str, rank: int, shape: Shape) -> None:
        _set_environment(shape)
        self._runtime, self._rank, self._shape = runtime, rank, shape
        self._worker: Runtime | None = None
        self._controls = Controls()
        self._events: SimpleQueue[str] = SimpleQueue()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._leave())

    def _leave(self) -> None:
        """A node that is taken away: stop with a checkpoint, or go at once if nothing runs."""
        running = self._controls.all()
        if not running:
            os._exit(128 + signal.SIGTERM)
        for control in running:
            control.stop("preempted")

    def hello(self) -> Hello:
        return Hello(
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            port=free_port(),
            log=os.readlink("/proc/self/fd/2"),
            version=__version__,
        )

    def load(self) -> None:
        with _no_exit():
            # Ray shows each member only its own GPUs: its device is always the first.
            self._worker = plugins.load_object(self._runtime)(self._rank, self._shape.workers, 0)
            self._joined.load()

    def join(self, address: str, port: int) -> None:
        with _no_exit():
            self._joined.join(address, port)

    def prepare(self, request: str) -> str:
        with _no_exit():
            prepared = self._joined.prepare(PrepareRequest.model_validate_json(request))
        return prepared.model_dump_json()

    def run(self, ticket: int, trial_json: str) -> Footprint:
        """Run one trial; what only another rank than 0 knows to be wrong is raised."""
        trial, control = TrialSpec.model_validate_json(trial_json), self._controls.of(ticket)
        log = TrialDirectory.of(trial.directory).log(self._rank)
        try:
            with output.kept(log, self._rank):
                self._fly(trial, control)
        finally:
            self._controls.end(ticket)
        return Footprint(own_host_bytes(), self._joined.device_bytes())

    def _fly(self, trial: TrialSpec, control: TrialControl) -> None:
        if self._rank == 0:
            for event in guarded(self._joined, trial, control):
                self._events.put(event.model_dump_json())
        else:
            with _no_exit():
                deque(self._joined.run(trial, control), maxlen=0)

    @ray.method(concurrency_group="events")
    def next_events(self) -> list[str]:
        """The events so far, at least one: blocks."""
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return events

    @ray.method(concurrency_group="control")
    def decide(self, ticket: int, go_on: bool) -> None:
        self._controls.of(ticket).decide(go_on)

    @ray.method(concurrency_group="control")
    def stop(self, ticket: int, reason: StopReason) -> None:
        self._controls.of(ticket).stop(reason)

    @ray.method(concurrency_group="control")
    def idle_s(self, ticket: int) -> float:
        """Seconds since the trial last took a step or scored a batch."""
        return self._controls.of(ticket).idle_s()

    @ray.method(concurrency_group="control")
    def stacks(self) -> str:
        """Where every thread of this process is."""
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            return file.read()

    @ray.method(concurrency_group="control")
    def resident_bytes(self) -> int:
        return resident_bytes()

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Never returns: its reference fails when the process dies, whatever it is doing."""
        threading.Event().wait()

    @property
    def _joined(self) -> Runtime:
        assert self._worker is not None, "load comes first"
        return self._worker


# Untyped: Ray's types know no concurrency groups.
_RemoteMember: Any = cast(Any, ray.remote)(
    max_restarts=0, concurrency_groups={"control": 1, "events": 1, "life": 1}
)(Member)


def _set_environment(shape: Shape) -> None:
    """What libraries read when they are first imported: threads, tools, devices."""
    threads = str(max(1, int(shape.cpus)))
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = threads
    # DeepSpeed looks for ninja on the path when it compiles an op.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not shape.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextmanager
def _no_exit() -> Iterator[None]:
    """An exit in a thread of a member would end nothing and answer nobody."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"the worker called exit({error.code})") from error


@dataclass
class Flight:
    """A trial on its gang. `ended` is how it ended on rank 0, until all ranks have returned."""

    trial: TrialSpec
    since: float
    """Monotonic seconds: since when it waited for its gang."""
    ticket: int = 0
    returned: int = 0
    started: bool = False
    ended: End | None = None


@dataclass
class Stall:
    """A gang that does nothing, asked for its stacks. Times are monotonic seconds."""

    lost: GangLost
    file: Path
    pids: Sequence[int]
    until: float = field(default_factory=lambda: time.monotonic() + ANSWER_TIMEOUT_S)
    stacks: dict[int, str] = field(default_factory=dict)
    """Of the ranks that have answered."""

    def on_stacks(self, rank: int, text: str) -> list[Event]:
        self.stacks[rank] = text
        return []

    def check(self) -> None:
        """Keep the stacks once they are all there, or time is up.

        Raises:
            GangLost: they are kept.
        """
        if len(self.stacks) == len(self.pids) or time.monotonic() > self.until:
            with suppress(OSError):
                write_text(self.file, "".join(map(self._of_rank, range(len(self.pids)))))
            raise self.lost

    def _of_rank(self, rank: int) -> str:
        pid = self.pids[rank]
        return f"--- rank {rank} (pid {pid})\n{self.stacks.get(rank) or _from_outside(pid)}\n"


Handler = Callable[[Any], list[Event]]
Ref = Any
"""A `ray.ObjectRef`; Ray's actor handles are untyped, and so is what they return."""


@dataclass(eq=False)
class Gang:
    """The driver's side of a gang. Times are monotonic seconds."""

    name: str
    shape: Shape
    placement: Placement
    runtime: str
    mark: str = "mptune"
    """Begins its name on the cluster, which is unique there."""
    pinned: bool = False
    """Whether it takes no other place than the planned one."""
    placed: bool = False
    """Whether Ray has given it its place."""
    flight: Flight | None = None
    ready: bool = False
    trials: int = 0
    started_at: float = field(default_factory=time.monotonic)
    last_end: float | None = None
    lost: GangLost | None = None
    growth: Growth = field(default_factory=Growth)
    pending: dict[Ref, tuple[int, Handler]] = field(default_factory=dict)
    _members: list[Any] = field(default_factory=list)
    _hellos: dict[int, Hello] = field(default_factory=dict)
    _overdue: tuple[float, GangOverdue] | None = None
    _symptom: tuple[float, GangLost] | None = None
    """What a rank saw of another's death, perhaps: it is the reason only if nobody has died."""
    _stall: Stall | None = None
    _heard_at: float = 0.0
    _asked: bool = False
    _resident: dict[int, int] = field(default_factory=dict)
    _memory_due: float = 0.0
    _silent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        bundle = {"CPU": self.shape.cpus, "GPU": self.shape.gpus}
        strategy = "STRICT_PACK" if len(set(self.placement)) == 1 else "PACK"
        self._group = placement_group(
            [{k: v for k, v in bundle.items() if v}] * self.shape.workers,
            strategy=strategy,
            name=f"{self.mark}/{self.name}",
            bundle_label_selector=self._pins() if self.pinned else None,
        )
        self._members = [self._member(rank) for rank in range(self.shape.workers)]
        for rank, member in enumerate(self._members):
            self._expect(member.live.remote(), rank, _nothing)
            self._expect(member.hello.remote(), rank, partial(self._on_hello, rank))
            self._expect(member.load.remote(), rank, _loaded)

    def _pins(self) -> list[dict[str, str]]:
        """Each rank to its node: placed elsewhere by Ray, it would be in the next gang's way."""
        return [{NODE_LABEL: node} for node in self.placement]

    def is_kept_out(self) -> bool:
        """Whether somebody else must be in the place that was planned for it."""
        if self.placed or not self.pinned or time.monotonic() - self.started_at < PLACE_TIMEOUT_S:
            return False
        self.look()
        return not self.placed

    def look(self) -> None:
        """See whether Ray has placed it by now, from where on it starts, be it slowly.

        The group's `ready()` may be no quicker: in older versions of Ray it is a task there.
        """
        if self.placed or placement_group_table(self._group).get("state") != "CREATED":
            return
        self.placed = True
        if len(self._hellos) < len(self._members):
            self._expect_within(START_TIMEOUT_S, "its processes did not start")

    def held(self) -> PlacedGang:
        """What admission needs to know."""
        return PlacedGang(self.name, self.shape, self.placement, idle=self.idle)

    @property
    def idle(self) -> bool:
        return self.ready and self.flight is None

    def status(self) -> GangStatus:
        """What others see of it."""
        state: Any = "idle" if self.idle else "busy" if self.ready else "starting"
        known = len(self._resident) == self.shape.workers
        return GangStatus(
            name=self.name,
            workers=self.shape.workers,
            cpus_per_worker=self.shape.cpus,
            gpus_per_worker=self.shape.gpus,
            nodes=tuple(dict.fromkeys(self.placement)),
            state=state,
            trial=self.flight.trial.number if self.flight else None,
            trials=self.trials,
            resident_bytes=sum(self._resident.values()) if known else None,
        )

    def ask_memory(self) -> None:
        """Have every rank say now and then how much memory it has; does not block."""
        if not self.ready or time.monotonic() < self._memory_due:
            return
        self._memory_due = time.monotonic() + MEMORY_EVERY_S
        for rank in set(range(self.shape.workers)) - self._silent:
            self._silent.add(rank)
            ref = self._members[rank].resident_bytes.remote()
            self._expect(ref, rank, partial(self._on_memory, rank))

    def _on_memory(self, rank: int, resident: int) -> list[Event]:
        self._silent.discard(rank)
        self._resident[rank] = resident
        return []

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(self._hellos[rank].pid for rank in sorted(self._hellos))

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data on rank 0; blocks.

        Raises:
            GangLost: the gang did not survive it.
            Exception: whatever the worker raised.
        """
        try:
            answer = ray.get(self._members[0].prepare.remote(request.model_dump_json()))
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise self._lost(0, error) from error
        return Prepared.model_validate_json(answer)

    def fly(self, trial: TrialSpec, since: float) -> None:
        """Run the trial, which has waited since then, now or as soon as the gang is ready."""
        self.flight = Flight(trial, since)
        if self.ready:
            self._run(self.flight)

    def decide(self, go_on: bool) -> None:
        self._heard()
        for member in self._members:
            member.decide.remote(self._ticket, go_on)

    def stop(self, reason: StopReason) -> None:
        for member in self._members:
            member.stop.remote(self._ticket, reason)
        self._expect_within(STOP_TIMEOUT_S, "did not stop when asked")

    def collect(self, ref: Ref) -> list[Event]:
        """What this pending reference, which is ready, has brought.

        Raises:
            GangLost: a rank died, or raised.
        """
        rank, handler = self.pending.pop(ref)
        try:
            value = ray.get(ref)
        except RayError as error:
            lost = self._lost(rank, error)
            if not _is_broken_connection(error):
                raise lost from error
            self._symptom = self._symptom or (time.monotonic() + ANSWER_TIMEOUT_S, lost)
            return []
        return handler(value)

    def check_time(self) -> None:
        """Notice what should have come by now.

        Raises:
            GangLost: it has not; a `GangOverdue` where nothing else is known to be wrong.
        """
        for due in (self._overdue, self._symptom):
            if due and time.monotonic() > due[0]:
                raise due[1]
        if self.ready and self.flight and not self.flight.ended:
            if self._stall:
                self._stall.check()
            else:
                self._check_stall(self.flight)

    def _check_stall(self, flight: Flight) -> None:
        """Ask rank 0 when nothing was heard for long: a long step, or scoring, is no stall."""
        limit_s = flight.trial.resources.stall_timeout_s
        if not flight.started:  # setting up may have to compile
            limit_s = max(limit_s, START_TIMEOUT_S)
        silent_s = time.monotonic() - self._heard_at
        if silent_s > limit_s + ANSWER_TIMEOUT_S:
            self._stalled(flight, limit_s)
        elif silent_s > limit_s and not self._asked:
            self._asked = True
            ref = self._members[0].idle_s.remote(flight.ticket)
            self._expect(ref, 0, partial(self._on_idle, flight, limit_s))

    def _on_idle(self, flight: Flight, limit_s: float, idle_s: float) -> list[Event]:
        if flight is self.flight and not flight.ended:
            if idle_s > limit_s:
                self._stalled(flight, limit_s)
            else:
                self._heard(idle_s)
        return []

    def _heard(self, ago_s: float = 0.0) -> None:
        self._heard_at, self._asked = time.monotonic() - ago_s, False

    def _stalled(self, flight: Flight, limit_s: float) -> None:
        """It is lost once every rank has shown where it is, or had the time to."""
        file = TrialDirectory.of(flight.trial.directory).stacks
        detail = f"{self.name} did nothing for {limit_s:g} s; its stacks are in {file.name}"
        self._stall = Stall(GangLost("stalled", detail), file, self.pids)
        for rank, member in enumerate(self._members):
            self._expect(member.stacks.remote(), rank, partial(self._stall.on_stacks, rank))

    def kill(self) -> None:
        """Leave no process and no reservation behind: a dead process lets go of everything."""
        for member in self._members:
            ray.kill(member)
        remove_placement_group(self._group)

    def _member(self, rank: int) -> Any:
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        options = {"num_cpus": self.shape.cpus, "num_gpus": self.shape.gpus}
        actor = _RemoteMember.options(scheduling_strategy=where, **options)
        return actor.remote(self.runtime, rank, self.shape)

    def _expect(self, ref: Ref, rank: int, handler: Handler) -> None:
        self.pending[ref] = rank, handler

    def _expect_within(self, seconds: float, otherwise: str) -> None:
        detail = f"{self.name}: {otherwise} (waited {seconds:.0f} s)"
        self._overdue = time.monotonic() + seconds, GangOverdue("worker_died", detail)

    def _on_hello(self, rank: int, hello: Hello) -> list[Event]:
        if hello.version != __version__:
            raise GangLost(
                "wrong_input",
                f"rank {rank} of {self.name} has mptune {hello.version} on {hello.address}, "
                f"the driver has {__version__}: {SAME_VERSION}",
            )
        self._hellos[rank] = hello
        if len(self._hellos) == len(self._members):
            self.placement = tuple(self._hellos[r].node for r in range(len(self._members)))
            self._join()
        return []

    def _join(self) -> None:
        first = self._hellos[0]
        address = "127.0.0.1" if len(set(self.placement)) == 1 else first.address
        joined: set[int] = set()
        for rank, member in enumerate(self._members):
            handler = partial(self._on_joined, rank, joined)
            self._expect(member.join.remote(address, first.port), rank, handler)
        self._expect_within(START_TIMEOUT_S, "its ranks did not meet")

    def _on_joined(self, rank: int, joined: set[int], _: None) -> list[Event]:
        joined.add(rank)
        if len(joined) < len(self._members):
            return []
        self.ready, self._overdue = True, None
        if self.flight:
            self._run(self.flight)
        seconds = time.monotonic() - self.started_at
        number = self.flight.trial.number if self.flight else -1
        detail = f"{self.shape} in {seconds:.1f} s"
        return [GangChanged(number=number, gang=self.name, state="ready", detail=detail)]

    def _run(self, flight: Flight) -> None:
        self.trials += 1
        flight.ticket, self._stall = self.trials, None
        self._heard()
        trial = flight.trial.model_dump_json()
        for rank, member in enumerate(self._members):
            handler = partial(self._on_return, rank)
            self._expect(member.run.remote(flight.ticket, trial), rank, handler)
        self._await_events()

    def _await_events(self) -> None:
        self._expect(self._members[0].next_events.remote(), 0, self._on_events)

    def _on_events(self, batch: list[str]) -> list[Event]:
        self._heard()
        events = [event_from_json(text) for text in batch]
        self._flight.started |= any(isinstance(e, Started) for e in events)
        last = events[-1]
        if isinstance(last, End):
            self._flight.ended = last
            events.remove(last)
            self._expect_within(AGREE_TIMEOUT_S, "only rank 0 ended the trial")
        else:
            self._await_events()
        return [self._completed(e) for e in events] + self._landing()

    def _on_return(self, rank: int, footprint: Footprint) -> list[Event]:
        self.growth.note(rank, footprint)
        self._flight.returned += 1
        return self._landing()

    def _landing(self) -> list[Event]:
        """The trial's end, once every rank is free for the next one."""
        flight = self._flight
        if flight.ended is None or flight.returned < len(self._members):
            return []
        self.flight, self._overdue, self.last_end = None, None, time.monotonic()
        return [flight.ended]

    def _completed(self, event: Event) -> Event:
        if not isinstance(event, Started):
            return event
        turnaround_s = None if self.last_end is None else time.monotonic() - self.last_end
        known = {"gang": self.name, "pids": self.pids, "turnaround_s": turnaround_s}
        return event.model_copy(update=known)

    def _lost(self, rank: int, error: RayError) -> GangLost:
        """What Ray's error about one rank means."""
        who, story = f"rank {rank} of {self.name}", COLOURS.sub("", str(error))
        if isinstance(error, RayTaskError):
            return GangLost(reason_of(error.cause), f"{who}: {one_line(error.cause)}", story)
        if isinstance(error, RuntimeEnvSetupError):
            detail = f"{who} could not get the driver's code ({_last_line(error)}): install it on "
            detail += "every node and set resources.ship_code: false"
            return GangLost("wrong_input", detail, story)
        if NO_MPTUNE.search(story):
            return GangLost("wrong_input", f"{who} has no mptune like this: {SAME_VERSION}", story)
        story += f"\n{self._log_tails(rank)}"
        if isinstance(error, OutOfMemoryError):
            detail = f"{who} was killed: {self._node(rank)} has no memory left"
            return GangLost("host_out_of_memory", detail, story)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            return GangLost("worker_died", f"{who} could not start: {_last_line(error)}", story)
        if _is_nodes(error):
            return GangLost("node_lost", f"{who} is out of reach: {self._node(rank)} died", story)
        pid = f" (pid {self._hellos[rank].pid})" if rank in self._hellos else ""
        return GangLost("worker_died", f"{who}{pid} died: killed, or crashed", story)

    def _node(self, rank: int) -> str:
        hello = self._hellos.get(rank)
        return f"its node {hello.address} ({hello.node[:8]})" if hello else "its node"

    def _log_tails(self, rank: int) -> str:
        """The last lines that a rank wrote, where its files can be read from here."""
        if rank not in self._hellos:
            return ""
        error_log = Path(self._hellos[rank].log)
        logs = [error_log.with_suffix(".out"), error_log]
        if self.flight:
            logs.append(TrialDirectory.of(self.flight.trial.directory).log(rank))
        logs = [log for log in logs if log.is_file()]
        return "".join(f"\n--- the end of {log}\n{_tail(log)}" for log in logs)

    @property
    def _flight(self) -> Flight:
        assert self.flight is not None, "a trial is in flight"
        return self.flight

    @property
    def _ticket(self) -> int:
        return self._flight.ticket


def _is_broken_connection(error: RayError) -> bool:
    return isinstance(error, RayTaskError) and "onnection" in str(error.cause)


def _is_nodes(error: RayError) -> bool:
    """Whether an actor's node is to blame: as long as it lives, it says how the actor ended."""
    return isinstance(error, ActorUnavailableError) or "its node has died" in str(error)


def _from_outside(pid: int) -> str:
    """What the kernel says of a process that does not answer, if it runs on this machine."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "does not answer\n"
    state = next(line for line in status.splitlines() if line.startswith("State"))
    return f"does not answer; {state.replace(chr(9), ' ')}\n"


def _nothing(_: Any) -> list[Event]:
    return []


def _loaded(_: Any) -> list[Event]:
    return []


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:  # another user's, or gone meanwhile
        return f"({error.strerror})\n"
