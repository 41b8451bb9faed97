"""Runs trials on gangs of Ray actors: admits them, watches them, and survives their deaths."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import ray

from mptune.dispatch import devices
from mptune.dispatch.admission import (
    Decision,
    Refuse,
    Retire,
    Start,
    WaitingTrial,
    admit,
    expected_starts,
    in_turn,
    trial_capacity,
    unused,
    waits,
)
from mptune.dispatch.autoscaler import Autoscaler
from mptune.dispatch.base import DispatchState, DurationForecast, NoForecast
from mptune.dispatch.cluster import Cluster
from mptune.dispatch.devices import Machine
from mptune.dispatch.gang import Flight, Gang, GangLost, GangOverdue
from mptune.dispatch.metrics import Metrics
from mptune.dispatch.placement import (
    ClusterNode,
    FreeResources,
    OtherUsage,
    PlacedGang,
    Placement,
    Shape,
)
from mptune.dispatch.runtime import HARMLESS, WORKER, End, write_traceback
from mptune.errors import DispatchError, MptuneError, one_line
from mptune.spec.schema import Resources
from mptune.status import QueuedTrial, Status, Wait
from mptune.trial import (
    Device,
    Event,
    Failed,
    GangChanged,
    Prepared,
    PrepareRequest,
    Stopped,
    StopReason,
    TrialSpec,
)

SLICE_S = 0.25
"""The longest single wait: how soon a signal, a deadline or a new node is noticed."""

NODES_EVERY_S = 1.0

PREDICTED = 20
"""Queued trials whose start is predicted."""

JOINING_S = 30.0
"""How long a trial that fits nowhere waits for nodes that may still join a given cluster."""

RETURNING_S = 600.0
"""How long it waits for nodes to come back on which it would have fitted: machines restart."""


@dataclass(frozen=True)
class _Queued:
    trial: TrialSpec
    since: float = field(default_factory=time.monotonic)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.trial.resources)

    def status(self, now: float, starts: float | None, wait: Wait) -> QueuedTrial:
        """What others see of it; times are monotonic seconds."""
        return QueuedTrial(
            number=self.trial.number,
            label=self.trial.label,
            workers=self.shape.workers,
            waited_s=now - self.since,
            starts_in_s=None if starts is None else max(0.0, starts - now),
            wait=wait,
        )


class RayDispatcher:
    """Runs trials on Ray, on this machine or on the cluster at `address` (or `RAY_ADDRESS`).

    All of it happens inside the calls of one thread, mostly `events()`: Ray's processes live as
    long as the thread that made the dispatcher.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        runtime: str = WORKER,
        address: str | None = None,
        forecast: DurationForecast | None = None,
        mark: str = "mptune",
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        address = None if address == "local" else address
        self._cluster = Cluster(address, ship=resources.ship_code)
        self._shape = min(map(Shape.of, resources.gangs()), key=lambda shape: shape.weight)
        self._runtime = runtime
        self._forecast = forecast or NoForecast()
        self._mark = f"{mark}/{secrets.token_hex(4)}"
        self._autoscaler = (
            Autoscaler(self._mark) if address and resources.scale_up_timeout_s else None
        )
        self._patience_s = max(JOINING_S, resources.scale_up_timeout_s) if address else 0.0
        self._queue: list[_Queued] = []
        self._gangs: dict[str, Gang] = {}
        self._fitted: dict[Shape, float] = {}
        self._names = (f"gang-{n}" for n in count(1))
        self._outbox: list[Event] = []
        self._metrics = Metrics()
        self._metrics_url = self._cluster.metrics_url()
        self._machines: dict[str, Machine] = {}
        self._shared = address is not None
        self._others = OtherUsage()
        self._nodes_seen: tuple[float, Sequence[ClusterNode]] = (-NODES_EVERY_S, ())

    def warm_up(self) -> None:
        self._spare_gang(self._preparer)

    def prepare(self, request: PrepareRequest) -> Prepared:
        gang = self._gang_for_preparing(
            self._shape if request.measure_precision else self._preparer
        )
        try:
            return gang.prepare(request)
        except GangLost as lost:
            self._lose(gang, lost)
            raise DispatchError(f"preparing the data failed: {lost.detail}") from lost
        except MptuneError:
            raise
        except Exception as error:
            raise DispatchError(f"preparing the data failed: {one_line(error)}") from error
        finally:
            self._drop_preparers()

    @property
    def _preparer(self) -> Shape:
        """Who prepares data takes no GPU: whether any trial fits one is known only then."""
        return replace(self._shape, workers=1, gpus=0) if self._shape.gpus else self._shape

    def _drop_preparers(self) -> None:
        """No trial of this search runs on a gang that has no GPU, if gangs have some."""
        for gang in list(self._gangs.values()):
            if gang.shape == self._preparer != self._shape and gang.flight is None:
                self._drop(gang, "the data are prepared")

    def capacity(self, flying: Sequence[Resources] = ()) -> int:
        shapes = [Shape.of(resources) for resources in flying]
        now = trial_capacity(self._nodes(), shapes, self._shape)
        # A cluster grows for what waits, so that one more than fits is to wait.
        waits = self._autoscaler is not None and not self._queue
        return max(1, now + waits)

    def device(self, resources: Resources) -> Device:
        nodes = self._nodes()
        if not self._cluster.is_away():
            self._machines = self._cluster.machines([node.id for node in nodes])
        told = [node for node in nodes if node.id in self._machines]
        return devices.device(resources, told, self._machines)

    def submit(self, trial: TrialSpec) -> None:
        self._queue.append(_Queued(trial))

    def events(self, timeout_s: float) -> list[Event]:
        until = time.monotonic() + timeout_s
        while True:
            if self._cluster.is_there():
                with self._cluster.asked():
                    self._watch_nodes()
                    self._admit()
                    self._scale()
                    self._collect(0 if self._outbox else until - time.monotonic())
            else:
                time.sleep(min(max(until - time.monotonic(), 0.0), SLICE_S))
            if self._outbox or time.monotonic() >= until:
                return self._take_outbox()

    def decide(self, number: int, go_on: bool) -> None:
        if gang := self._gang_of(number):
            gang.decide(go_on)

    def stop(self, number: int, reason: StopReason) -> None:
        gang = self._gang_of(number)
        if gang and gang.ready:
            gang.stop(reason)
            return
        if gang:
            gang.flight = None
        if gang or self._take(number):
            self._outbox.append(Stopped(number=number, reason=reason, step=0))

    def state(self) -> DispatchState:
        if not self._cluster.is_away():
            for gang in self._gangs.values():
                gang.ask_memory()
        gangs = tuple(gang.status() for gang in self._gangs.values())
        return DispatchState(gangs, self._queue_status(time.monotonic()), self._metrics_url)

    def _queue_status(self, now: float) -> tuple[QueuedTrial, ...]:
        """Only the first ones have a prediction: playing admission forward takes long."""
        waiting, held, nodes = self._waiting(), self._held(now), self._nodes()
        starts = expected_starts(in_turn(waiting)[:PREDICTED], held, nodes, now)
        queued = {q.trial.number: q for q in self._queue}
        found = waits(waiting, held, nodes, now)
        return tuple(queued[n].status(now, starts.get(n), wait) for n, wait in found.items())

    def publish(self, status: Status) -> None:
        self._metrics.say(status)

    def address(self) -> str | None:
        return self._cluster.address

    def close(self) -> None:
        self._queue.clear()
        if not self._cluster.is_away():
            for gang in list(self._gangs.values()):
                self._drop(gang, "closed")
            self._scale()
        self._cluster.close()

    def _take_outbox(self) -> list[Event]:
        out, self._outbox = self._outbox, []
        for event in out:
            self._metrics.hear(event)
        return out

    def _gang_of(self, number: int) -> Gang | None:
        flying = (g for g in self._gangs.values() if g.flight and g.flight.trial.number == number)
        return next(flying, None)

    def _take(self, number: int) -> _Queued | None:
        """Take a trial out of the queue, if it is there."""
        queued = next((q for q in self._queue if q.trial.number == number), None)
        if queued:
            self._queue.remove(queued)
        return queued

    def _nodes(self) -> Sequence[ClusterNode]:
        old = time.monotonic() - self._nodes_seen[0] >= NODES_EVERY_S
        if old and not self._cluster.is_away():
            self._look()
        return self._nodes_seen[1]

    def _look(self) -> None:
        """See what nodes there are, and what others hold of them."""
        now = time.monotonic()
        self._nodes_seen = now, self._cluster.nodes()
        for gang in self._gangs.values():
            gang.look()
        if self._shared:
            ours = [gang.held() for gang in self._gangs.values() if gang.placed]
            self._others.update(self._nodes_seen[1], self._cluster.unused(), ours, now)

    def _watch_nodes(self) -> None:
        """Give up gangs on nodes that are gone: nothing else may tell, as of a lost network."""
        alive = {node.id for node in self._nodes()} if self._gangs else set()
        for gang in list(self._gangs.values()):
            if alive.issuperset(gang.placement):
                if gang.is_kept_out():
                    self._give_way(gang)
            elif gang.ready:
                self._lose(gang, GangLost("node_lost", f"a node of {gang.name} has left"))
            else:
                self._retract(gang, "its node left before it started")

    def _give_way(self, gang: Gang) -> None:
        """Others were faster: admission finds another place for its trial, or lets it wait."""
        self._others.block(gang.placement, time.monotonic())
        self._retract(gang, "others use its place")
        self._look()

    def _retract(self, gang: Gang, why: str) -> None:
        """It did not start: its trial waits on, as long as it has waited."""
        if gang.flight:
            self._queue.insert(0, _Queued(gang.flight.trial, gang.flight.since))
        self._drop(gang, why)

    def _admit(self) -> None:
        if not self._queue:
            return
        now = time.monotonic()
        decisions = admit(self._waiting(), self._held(now), self._nodes(), now)
        self._note_what_fits(decisions, now)
        for decision in decisions:
            match decision:
                case Retire(gang):
                    self._drop(self._gangs[gang], "its place was wanted")
                case Start(number, gang, placement):
                    self._start(number, gang, placement)
                case Refuse(number, detail):
                    self._refuse(number, detail)

    def _note_what_fits(self, decisions: Sequence[Decision], now: float) -> None:
        refused = {d.number for d in decisions if isinstance(d, Refuse)}
        fit = (q.shape for q in self._queue if q.trial.number not in refused)
        self._fitted |= dict.fromkeys(fit, now)

    def _scale(self, *more: Shape) -> None:
        """Let the cluster have room for what there is and for what waits."""
        if self._autoscaler:
            there = [gang.shape for gang in self._gangs.values()]
            wait = [*(q.shape for q in self._queue), *more]
            # What others hold is no room for what waits.
            others = self._others.lasting() if wait else []
            self._autoscaler.want([*there, *wait, *others])

    def _waiting(self) -> list[WaitingTrial]:
        return [
            WaitingTrial(q.trial.number, q.shape, q.since, self._forecast.seconds(q.trial))
            for q in self._queue
        ]

    def _held(self, now: float) -> list[PlacedGang]:
        """The gangs, the longest idle first, and when their trials are predicted to end; others."""
        longest_idle = sorted(self._gangs.values(), key=lambda g: g.last_end or g.started_at)
        ours = [replace(gang.held(), ends=self._ends(gang, now)) for gang in longest_idle]
        self._nodes()  # looks around, if it is time to
        return [*ours, *self._others.held()]

    def _ends(self, gang: Gang, now: float) -> float | None:
        if gang.flight is None:
            return None
        trial = gang.flight.trial
        left_s = self._forecast.remaining(trial.number, now)
        left_s = self._forecast.seconds(trial) if left_s is None else left_s
        return None if left_s is None else now + left_s

    def _start(self, number: int, name: str | None, placement: Placement) -> None:
        """It stays in the queue if Ray fails to make its gang."""
        queued = next(q for q in self._queue if q.trial.number == number)
        gang = self._gangs[name] if name else self._new_gang(queued.shape, placement, number)
        self._queue.remove(queued)
        gang.fly(queued.trial, queued.since)

    def _refuse(self, number: int, detail: str) -> None:
        """Nodes may still join, or come back, but are not waited for without end."""
        queued = next(q for q in self._queue if q.trial.number == number)
        last = self._fitted.get(queued.shape)
        patience_s = self._patience_s if last is None else max(self._patience_s, RETURNING_S)
        if time.monotonic() - max(queued.since, last or queued.since) >= patience_s:
            self._queue.remove(queued)
            self._outbox.append(Failed(number=number, reason="wrong_input", detail=detail))

    def _new_gang(self, shape: Shape, placement: Placement, number: int = -1) -> Gang:
        # Where others place gangs, too, each goes where admission counts it, or nowhere.
        name, pinned = next(self._names), self._shared
        gang = Gang(name, shape, placement, self._runtime, self._mark, pinned)
        self._gangs[gang.name] = gang
        self._fitted[shape] = time.monotonic()
        detail = f"{shape}{_first_time() if self._runtime == WORKER else ''}"
        self._outbox.append(
            GangChanged(number=number, gang=gang.name, state="starting", detail=detail)
        )
        return gang

    def _gang_for_preparing(self, shape: Shape) -> Gang:
        while not (gang := self._spare_gang(shape)).ready:
            if self._cluster.is_there():
                self._collect(SLICE_S)
                self._watch_nodes()  # it may have to find another place
            else:
                time.sleep(SLICE_S)
            if gang.lost:
                raise DispatchError(f"no worker could be started: {gang.lost.detail}")
        return gang

    def _spare_gang(self, shape: Shape) -> Gang:
        """One without a trial, perhaps on its way, that has GPUs if the shape does.

        Raises:
            DispatchError: there is no room for one.
        """
        spare = [g for g in self._gangs.values() if g.flight is None]
        gang = next((g for g in spare if g.shape.gpus or not shape.gpus), None)
        if gang is None and self._place(shape) is None:
            for useless in spare:
                self._drop(useless, "its place was wanted")
        return gang or self._new_gang(shape, self._wait_for_room(shape))

    def _wait_for_room(self, shape: Shape) -> Placement:
        """Where a gang may be: once others leave room, or machines that were asked for are there.

        Raises:
            DispatchError: there is none, and no machine joins in time; or the head is lost.
        """
        give_up = time.monotonic() + (self._patience_s if self._autoscaler else 0.0)
        while (placement := self._place(shape)) is None:
            if not FreeResources.of(self._nodes()).fits(shape) and time.monotonic() >= give_up:
                raise DispatchError(f"no room in the cluster for {shape}")
            if self._cluster.is_there():
                self._scale(shape)
            time.sleep(SLICE_S)
        return placement

    def _place(self, shape: Shape) -> Placement | None:
        nodes = self._nodes()
        return unused(nodes, self._held(time.monotonic())).place(shape)

    def _collect(self, wait_s: float) -> None:
        """Take in what the gangs say: wait for the first of it, at most a slice."""
        wait_s = min(max(wait_s, 0.0), SLICE_S)
        owner = {ref: gang for gang in self._gangs.values() for ref in gang.pending}
        if not owner:
            time.sleep(wait_s)
            return
        ray.wait(list(owner), num_returns=1, timeout=wait_s)
        ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        for ref in ready:
            if not owner[ref].lost:
                self._hear(owner[ref], ref)
        for gang in list(self._gangs.values()):
            try:
                gang.check_time()
            except GangLost as overdue:
                self._lose(gang, overdue)

    def _hear(self, gang: Gang, ref: object) -> None:
        trial = gang.flight.trial if gang.flight else None
        try:
            events = gang.collect(ref)
        except GangLost as lost:
            self._lose(gang, lost)
            return
        self._outbox += events
        if trial and events and isinstance(events[-1], End):
            self._keep_or_drop(gang, trial, events[-1])

    def _keep_or_drop(self, gang: Gang, trial: TrialSpec, end: End) -> None:
        if isinstance(end, Failed) and end.reason not in HARMLESS:
            self._drop(gang, end.detail, trial.number)
        elif isinstance(end, Stopped) and end.reason == "preempted":
            self._drop(gang, "one of its nodes is taken away", trial.number)
        elif gang.trials >= trial.resources.trials_per_gang:
            self._drop(gang, f"remade after {gang.trials} trials")
        elif excess := gang.growth.excess(trial.resources):
            self._drop(gang, f"remade: {excess}")

    def _lose(self, gang: Gang, lost: GangLost) -> None:
        """A gang is lost: end its trial, if it has one, and clear it away."""
        gang.lost = lost
        number = -1
        if gang.flight:
            number = gang.flight.trial.number
            self._outbox.append(_verdict(gang.flight, lost))
        self._drop(gang, lost.detail, number)

    def _drop(self, gang: Gang, why: str, number: int = -1) -> None:
        gang.kill()
        del self._gangs[gang.name]
        self._outbox.append(GangChanged(number=number, gang=gang.name, state="gone", detail=why))


def _verdict(flight: Flight, lost: GangLost) -> End:
    """How a trial ended whose gang is lost.

    Rank 0 may have reported an end before: that one counts, unless it only saw the death of
    another rank from its side, as a broken connection.
    """
    told = flight.ended
    symptom = isinstance(told, Failed) and told.reason == "error"
    if told and not (symptom and not isinstance(lost, GangOverdue)):
        return told
    write_traceback(flight.trial, f"{lost.detail}\n\n{lost.story}\n")
    return Failed(number=flight.trial.number, reason=lost.reason, detail=lost.detail)


def _first_time() -> str:
    """A word about the wait when DeepSpeed has not compiled anything here yet."""
    home = Path.home() / ".cache" / "torch_extensions"
    compiled = Path(os.environ.get("TORCH_EXTENSIONS_DIR", home))
    return "" if compiled.exists() else "; the first one compiles for about a minute"
