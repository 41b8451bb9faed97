"""The driver's side of a gang: one Ray placement group with one worker process per rank.

No call here blocks, except `prepare`: every call to a member leaves an object reference in
`pending`, with the handler of its value. The owner of the gang waits for those references and
passes the ready ones to `collect`, which returns the trial's events or raises `GangLost`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mptune import __version__
from mptune.dispatch import faults
from mptune.dispatch.base import End
from mptune.dispatch.faults import (
    SAME_VERSION,
    GangLost,
    GangOverdue,
    StallWatch,
    loss_of,
)
from mptune.dispatch.lifecycle import GangEvent, GangState
from mptune.dispatch.member import MemberInfo, RemoteMember
from mptune.dispatch.placement import PlacedGang, Placement, Shape
from mptune.dispatch.ray_private import NODE_LABEL
from mptune.paths import TrialDirectory
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
"""For importing the libraries and connecting the ranks, once the processes run."""

PLACE_TIMEOUT_S = 15.0
"""For Ray to reserve the planned nodes: at once, or when the gang before has released them."""

STOP_TIMEOUT_S = 120.0
"""From a stop request to the end of the trial; a checkpoint may have to be written."""

AGREE_TIMEOUT_S = 10.0
"""From the end of a trial on rank 0 to its end on all ranks."""

Handler = Callable[[int, Any], list[Event]]
"""Takes in the answer of a rank."""

Ref = Any
"""A `ray.ObjectRef`; Ray's actor handles are untyped, and so is what they return."""


@dataclass(eq=False)
class DispatchedTrial:
    """A trial from its submission to its last event. Times are monotonic seconds."""

    spec: TrialSpec
    since: float = field(default_factory=time.monotonic)
    """When it was submitted."""
    ticket: int = 0
    """Its number among the trials of its gang."""
    started: bool = False
    """Whether its first step was reported."""
    reported: End | None = None
    """How it ended on rank 0."""

    @property
    def shape(self) -> Shape:
        return Shape.of(self.spec.resources)


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
    """Whether Ray may place it on the planned nodes only."""
    state: GangState = GangState.PLACING
    trial: DispatchedTrial | None = None
    trials: int = 0
    started_at: float = field(default_factory=time.monotonic)
    last_end: float | None = None
    lost: GangLost | None = None
    excess: str | None = None
    """Memory that a rank did not release after a trial; None if it was little."""
    pending: dict[Ref, tuple[int, Handler]] = field(default_factory=dict)
    """Reference -> (rank that was asked, handler of its answer)."""
    infos: dict[int, MemberInfo] = field(default_factory=dict)
    _members: list[Any] = field(default_factory=list)
    _due: dict[Literal["answer", "symptom", "stall"], tuple[float, GangLost]] = field(
        default_factory=dict
    )
    """When the gang is lost, unless something happens before."""
    _watch: StallWatch = field(default_factory=lambda: StallWatch(0.0))

    def __post_init__(self) -> None:
        """Ask Ray for the placement group and the processes; does not wait for them."""
        bundle = {"CPU": self.shape.cpus, "GPU": self.shape.gpus}
        self._group = placement_group(
            [{kind: amount for kind, amount in bundle.items() if amount}] * self.shape.workers,
            strategy="STRICT_PACK" if len(set(self.placement)) == 1 else "PACK",
            name=f"{self.mark}/{self.name}",
            # On other nodes than planned it would be in the way of the next gang.
            bundle_label_selector=[{NODE_LABEL: node} for node in self.placement]
            if self.pinned
            else None,
        )
        for rank in range(self.shape.workers):
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
            member = RemoteMember.options(
                scheduling_strategy=where, num_cpus=self.shape.cpus, num_gpus=self.shape.gpus
            ).remote(self.runtime, rank, self.shape)
            self._members.append(member)
        self._ask_all("live", _ignore)
        self._ask_all("info", self._on_info)
        self._ask_all("load", _ignore)

    def is_placed(self) -> bool:
        """Return True once Ray has reserved the placement group; the actors may still be starting.

        The group's own `ready()` may be no quicker: in older versions of Ray it is a task there.
        """
        if self.state is GangState.PLACING:
            if placement_group_table(self._group).get("state") != "CREATED":
                return False
            self._on(GangEvent.PLACE)
            self._expect_within(START_TIMEOUT_S, "its processes did not start")
        return True

    def is_displaced(self) -> bool:
        """Whether Ray did not reserve the planned nodes in time: another program uses them."""
        late = time.monotonic() - self.started_at >= PLACE_TIMEOUT_S
        return self.pinned and late and not self.is_placed()

    def held(self) -> PlacedGang:
        """The gang as admission sees it."""
        return PlacedGang(self.name, self.shape, self.placement, self.state is GangState.IDLE)

    def status(self) -> GangStatus:
        state: Literal["starting", "idle", "busy"] = "busy" if self.state.is_ready else "starting"
        return GangStatus(
            name=self.name,
            workers=self.shape.workers,
            cpus_per_worker=self.shape.cpus,
            gpus_per_worker=self.shape.gpus,
            nodes=tuple(dict.fromkeys(self.placement)),
            state="idle" if self.state is GangState.IDLE else state,
            trial=self.trial.spec.number if self.trial else None,
            trials=self.trials,
        )

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(self.infos[rank].pid for rank in sorted(self.infos))

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data on rank 0; blocks.

        Raises:
            GangLost: the gang did not survive it.
            Exception: what the worker raised.
        """
        try:
            answer = ray.get(self._members[0].prepare.remote(request.model_dump_json()))
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise self._loss(0, error) from error
        return Prepared.model_validate_json(answer)

    def assign(self, trial: DispatchedTrial) -> None:
        """Run the trial, now or as soon as the gang is ready."""
        self.trial = trial
        if self.state.is_ready:
            self._run(trial)

    def decide(self, go_on: bool) -> None:
        """Answer the trial's last rung."""
        self._watch.heard(time.monotonic())
        for member in self._members:
            member.decide.remote(self._running.ticket, go_on)

    def stop(self, reason: StopReason) -> None:
        """Ask the running trial to stop soon."""
        self._on(GangEvent.STOP)
        for member in self._members:
            member.stop.remote(self._running.ticket, reason)
        if self.state.awaits_end:
            self._expect_within(STOP_TIMEOUT_S, "did not stop when asked")

    def collect(self, ref: Ref) -> list[Event]:
        """Take in the value of a pending reference, which is ready.

        Raises:
            GangLost: a rank died, or raised.
        """
        rank, handler = self.pending.pop(ref)
        try:
            value = ray.get(ref)
        except RayError as error:
            lost = self._loss(rank, error)
            if not lost.may_be_symptom:
                raise lost from error
            # If another rank has died, that is the reason to report; wait until it is known.
            self._due.setdefault("symptom", (time.monotonic() + faults.ANSWER_TIMEOUT_S, lost))
            return []
        return handler(rank, value)

    def check_time(self) -> None:
        """Notice what should have happened by now.

        Raises:
            GangLost: it has not; a `GangOverdue` where nothing else is known to be wrong.
        """
        now = time.monotonic()
        for due, lost in self._due.values():
            if now > due:
                raise lost
        if self.state in (GangState.RUNNING, GangState.STOPPING):
            trial = self._running
            limit_s = trial.spec.resources.stall_timeout_s
            if not trial.started:  # setting up may have to compile
                limit_s = max(limit_s, START_TIMEOUT_S)
            match self._watch.check(limit_s, now):
                case "ask":
                    handler = partial(self._on_idle, trial, limit_s)
                    self._ask(0, "idle_s", handler, trial.ticket)
                case "stalled":
                    self._stall(limit_s)

    def _on_idle(
        self, trial: DispatchedTrial, limit_s: float, _: int, idle_s: float
    ) -> list[Event]:
        if trial is self.trial and self.state in (GangState.RUNNING, GangState.STOPPING):
            if idle_s > limit_s:
                self._stall(limit_s)
            else:
                self._watch.heard(time.monotonic() - idle_s)
        return []

    def _stall(self, limit_s: float) -> None:
        """Give the gang up, once every rank had the time to write its stacks."""
        self._on(GangEvent.STALL)
        detail = (
            f"{self.name} did nothing for {limit_s:g} s; stacks are at the end of its ranks' logs"
        )
        self._due["stall"] = time.monotonic() + faults.ANSWER_TIMEOUT_S, GangLost("stalled", detail)
        self._ask_all("write_stacks", _ignore)

    def kill(self) -> None:
        """Kill all processes and release the resources."""
        self._on(GangEvent.KILL)
        for member in self._members:
            ray.kill(member)
        remove_placement_group(self._group)

    def _on(self, event: GangEvent) -> None:
        self.state = self.state.after(event)

    def _ask(self, rank: int, method: str, handler: Handler, *arguments: Any) -> None:
        """Call a method of a member; the handler gets its answer."""
        ref = getattr(self._members[rank], method).remote(*arguments)
        self.pending[ref] = rank, handler

    def _ask_all(self, method: str, handler: Handler, *arguments: Any) -> None:
        for rank in range(self.shape.workers):
            self._ask(rank, method, handler, *arguments)

    def _awaits(self, handler: Handler) -> bool:
        """Whether a rank has not given the answer that this handler takes."""
        return any(handler == each for _, each in self.pending.values())

    def _expect_within(self, seconds: float, otherwise: str) -> None:
        detail = f"{self.name}: {otherwise} (waited {seconds:.0f} s)"
        self._due["answer"] = time.monotonic() + seconds, GangOverdue("worker_died", detail)

    def _on_info(self, rank: int, info: MemberInfo) -> list[Event]:
        if info.version != __version__:
            raise GangLost(
                "wrong_input",
                f"rank {rank} of {self.name} has mptune {info.version} on {info.address}, "
                f"the driver has {__version__}: {SAME_VERSION}",
            )
        self.infos[rank] = info
        if len(self.infos) < len(self._members):
            return []
        self._on(GangEvent.START)
        self.placement = tuple(self.infos[r].node for r in range(len(self._members)))
        first = self.infos[0]
        address = "127.0.0.1" if len(set(self.placement)) == 1 else first.address
        self._ask_all("join", self._on_joined, address, first.port)
        self._expect_within(START_TIMEOUT_S, "its ranks did not connect")
        return []

    def _on_joined(self, rank: int, _: None) -> list[Event]:
        if self._awaits(self._on_joined):
            return []
        self._on(GangEvent.JOIN)
        del self._due["answer"]
        if self.trial:
            self._run(self.trial)
        number = self.trial.spec.number if self.trial else -1
        detail = f"{self.shape} in {time.monotonic() - self.started_at:.1f} s"
        return [GangChanged(number=number, gang=self.name, state="ready", detail=detail)]

    def _run(self, trial: DispatchedTrial) -> None:
        self._on(GangEvent.RUN)
        self.trials += 1
        trial.ticket = self.trials
        self._watch.heard(time.monotonic())
        self._ask_all("run", self._on_return, trial.ticket, trial.spec.model_dump_json())
        self._ask(0, "next_events", self._on_events)

    def _on_events(self, _: int, batch: list[str]) -> list[Event]:
        """Pass on the events of rank 0; its last one waits until all ranks have returned."""
        now, trial = time.monotonic(), self._running
        self._watch.heard(now)
        events: list[Event] = []
        for event in map(event_from_json, batch):
            if isinstance(event, End):
                trial.reported = event
            elif isinstance(event, Started):
                trial.started = True
                turnaround_s = None if self.last_end is None else now - self.last_end
                known = {"gang": self.name, "pids": self.pids, "turnaround_s": turnaround_s}
                events.append(event.model_copy(update=known))
            else:
                events.append(event)
        if trial.reported:
            self._on(GangEvent.END_TRIAL)
            self._due.pop("stall", None)
            self._expect_within(AGREE_TIMEOUT_S, "only rank 0 ended the trial")
        else:
            self._ask(0, "next_events", self._on_events)
        return events + self._finish()

    def _on_return(self, rank: int, excess: str | None) -> list[Event]:
        self.excess = self.excess or excess
        return self._finish()

    def _finish(self) -> list[Event]:
        """The trial's end, once every rank is free for the next one."""
        trial = self._running
        if trial.reported is None or self._awaits(self._on_return):
            return []
        self._on(GangEvent.FREE)
        del self._due["answer"]
        self.trial, self.last_end = None, time.monotonic()
        return [trial.reported]

    def _loss(self, rank: int, error: RayError) -> GangLost:
        """What Ray's error about one rank means."""
        info, logs = self.infos.get(rank), []
        if info:
            logs = [Path(info.log).with_suffix(".out"), Path(info.log)]
            if self.trial:
                logs.append(TrialDirectory.of(self.trial.spec.directory).log(rank))
        return loss_of(error, f"rank {rank} of {self.name}", info, logs)

    @property
    def _running(self) -> DispatchedTrial:
        assert self.trial is not None, "a trial runs"
        return self.trial


def _ignore(rank: int, answer: Any) -> list[Event]:
    return []
