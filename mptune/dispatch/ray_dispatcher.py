"""Runs trials on gangs of Ray actors: admits trials, monitors gangs and replaces lost ones."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import ray

from mptune.dispatch import admission, devices, ray_private
from mptune.dispatch.admission import Refuse, Retire, Start, WaitingTrial
from mptune.dispatch.base import HARMLESS, WORKER, DispatchState, DurationForecast
from mptune.dispatch.claims import Autoscaler
from mptune.dispatch.cluster import ClusterConnection
from mptune.dispatch.devices import Machine
from mptune.dispatch.faults import GangLost, end_of_trial
from mptune.dispatch.gang import DispatchedTrial, Gang
from mptune.dispatch.lifecycle import GangState
from mptune.dispatch.metrics import SearchMetrics
from mptune.dispatch.placement import (
    ClusterNode,
    FreeResources,
    OtherUsage,
    PlacedGang,
    Placement,
    Shape,
)
from mptune.errors import DispatchError, MptuneError, one_line, plural
from mptune.spec.schema import Resources
from mptune.status import QueuedTrial, Status
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
"""The longest single wait: a signal, a deadline or a new node is noticed after it."""

NODES_EVERY_S = 1.0

LEAVING = "one of its nodes is taken away"

JOINING_S = 30.0
"""How long a trial that fits nowhere waits for nodes that may still join a given cluster."""

AVOIDED_S = 600.0
"""How long no gang starts on the node of a GPU that failed, if it fits on others."""

RETURNING_S = 600.0
"""How long it waits for nodes to return on which it would have fitted: machines restart."""


class GangPool:
    """The gangs of a dispatcher, and the resources of the cluster that they share with others.

    A trial is in `queue`, or it is the trial of a gang, until its last event. What happens to gangs
    and trials is appended to `outbox`.
    """

    def __init__(
        self, cluster: ClusterConnection, runtime: str, mark: str, *, shared: bool
    ) -> None:
        self.cluster = cluster
        self.outbox: list[Event] = []
        self.queue: dict[int, DispatchedTrial] = {}
        self.others = OtherUsage()
        self.gangs: dict[str, Gang] = {}
        self._runtime, self._mark, self._shared = runtime, mark, shared
        self._names = (f"gang-{n}" for n in count(1))
        self._nodes: Sequence[ClusterNode] = ()
        self._leaving: set[str] = set()
        self._nodes_due = 0.0

    def nodes(self) -> Sequence[ClusterNode]:
        """The nodes that stay in the cluster, at most a second old unless its head is away."""
        if time.monotonic() >= self._nodes_due and not self.cluster.head.is_away():
            self.update_nodes()
        return self._nodes

    def update_nodes(self) -> None:
        """Ask Ray for the nodes, for the gangs that are placed, and for what others use."""
        now = time.monotonic()
        nodes, self._nodes_due = self.cluster.nodes(), now + NODES_EVERY_S
        self._leaving = ray_private.leaving_nodes() & {node.id for node in nodes}
        self._nodes = [node for node in nodes if node.id not in self._leaving]
        placed = [gang.held() for gang in self.gangs.values() if gang.is_placed()]
        if self._shared:
            self.others.update(self._nodes, self.cluster.unused(), placed, now)

    def free(self) -> FreeResources:
        """What neither gangs nor others use."""
        nodes = self.nodes()
        gangs = [gang.held() for gang in self.gangs.values()]
        return FreeResources.of(nodes, [*gangs, *self.others.held()])

    def of(self, number: int) -> Gang | None:
        """The gang that runs the trial, or starts for it."""
        gangs = (g for g in self.gangs.values() if g.trial and g.trial.spec.number == number)
        return next(gangs, None)

    def start(self, shape: Shape, placement: Placement, number: int = -1) -> Gang:
        """Ask Ray for a new gang, which is to run that trial."""
        # Where other programs place gangs, too, Ray must use the nodes that admission has planned.
        gang = Gang(next(self._names), shape, placement, self._runtime, self._mark, self._shared)
        self.gangs[gang.name] = gang
        change = GangChanged(number=number, gang=gang.name, state="starting", detail=str(shape))
        self.outbox.append(change)
        return gang

    def drop(self, gang: Gang, why: str, number: int = -1) -> None:
        """End a gang."""
        gang.kill()
        del self.gangs[gang.name]
        self.outbox.append(GangChanged(number=number, gang=gang.name, state="gone", detail=why))

    def check_nodes(self) -> None:
        """End gangs whose nodes have left, are leaving, or are used by other programs.

        After a network failure, nothing else may show that a node has left. A trial on a node that
        is leaving stops with a checkpoint.
        """
        alive = {node.id for node in self.nodes()} | self._leaving if self.gangs else set()
        for gang in list(self.gangs.values()):
            if not alive.issuperset(gang.placement):
                if gang.state.is_ready:
                    self.lose(gang, GangLost("node_lost", f"a node of {gang.name} has left"))
                else:
                    self._retract(gang, "its node left before it started")
            elif not self._leaving.isdisjoint(gang.placement):
                if gang.state is GangState.RUNNING:
                    gang.stop("preempted")
                elif gang.state is GangState.IDLE:
                    self.drop(gang, LEAVING)
                elif not gang.state.is_ready:
                    self._retract(gang, LEAVING)
            elif gang.is_displaced():
                self.others.block(gang.placement, time.monotonic())
                self._retract(gang, "others use its place")
                self.update_nodes()

    def collect(self, wait_s: float) -> None:
        """Handle the answers of the gangs; wait at most one slice for the first one."""
        wait_s = min(max(wait_s, 0.0), SLICE_S)
        owner = {ref: gang for gang in self.gangs.values() for ref in gang.pending}
        if not owner:
            time.sleep(wait_s)
            return
        ray.wait(list(owner), num_returns=1, timeout=wait_s)
        ready, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        for ref in ready:
            gang, trial = owner[ref], owner[ref].trial
            if gang.state is GangState.ENDED:
                continue
            try:
                events = gang.collect(ref)
            except GangLost as lost:
                self.lose(gang, lost)
                continue
            self.outbox += events
            if trial and gang.trial is None:
                self._drop_unless_reusable(gang, trial)
        for gang in list(self.gangs.values()):
            try:
                gang.check_time()
            except GangLost as overdue:
                self.lose(gang, overdue)

    def _drop_unless_reusable(self, gang: Gang, trial: DispatchedTrial) -> None:
        """End a gang that should run no other trial after this one."""
        number, end, resources = trial.spec.number, trial.reported, trial.spec.resources
        if isinstance(end, Failed) and end.reason not in HARMLESS:
            self._avoid(gang, end)
            self.drop(gang, end.detail, number)
        elif isinstance(end, Stopped) and end.reason == "preempted":
            self.drop(gang, LEAVING, number)
        elif gang.trials >= resources.trials_per_gang:
            self.drop(gang, f"remade after {plural(gang.trials, 'trial')}")
        elif gang.excess:
            self.drop(gang, f"remade: {gang.excess}")

    def lose(self, gang: Gang, lost: GangLost) -> None:
        """End a gang that cannot continue, and its trial."""
        gang.lost, number, end = lost, -1, None
        if gang.trial:
            number = gang.trial.spec.number
            end = end_of_trial(gang.trial.spec, gang.trial.reported, lost)
            self.outbox.append(end)
        self._avoid(gang, end if isinstance(end, Failed) else lost)
        self.drop(gang, lost.detail, number)

    def _avoid(self, gang: Gang, fault: Failed | GangLost) -> None:
        """After a fault of a GPU, plan no gang on its node for a while, if others have room.

        Ray does not say which GPU a gang would get. On a machine's own resources nothing else can
        be chosen.
        """
        if fault.reason != "device_fault":
            return
        rank = re.match(r"rank (\d+)", fault.detail)
        bad = {gang.placement[int(rank[1])]} if rank else set(gang.placement)
        others = [node for node in self._nodes if node.id not in bad]
        if FreeResources.of(others).fits(gang.shape):
            self.others.block(bad, time.monotonic(), AVOIDED_S)

    def _retract(self, gang: Gang, why: str) -> None:
        """End a gang that could not start; its trial is queued again."""
        if gang.trial:
            self.queue[gang.trial.spec.number] = gang.trial
        self.drop(gang, why)


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
        mark = f"{mark}/{secrets.token_hex(4)}"
        self._cluster = ClusterConnection(address, ship=resources.ship_code)
        self._pool = GangPool(self._cluster, runtime, mark, shared=address is not None)
        self._shape = min(map(Shape.of, resources.gangs()), key=lambda shape: shape.weight)
        # Data are prepared without GPUs: which trials fit on one is known only then.
        cpus_only = replace(self._shape, workers=1, gpus=0)
        self._preparer = cpus_only if self._shape.gpus else self._shape
        self._forecast = forecast
        scales = address is not None and resources.scale_up_timeout_s > 0
        self._autoscaler = Autoscaler(mark) if scales else None
        self._patience_s = max(JOINING_S, resources.scale_up_timeout_s) if address else 0.0
        self._fitted: dict[Shape, float] = {}
        """When each shape last fitted in the cluster."""
        self._metrics = SearchMetrics()
        self._metrics_url = self._cluster.metrics_url()
        self._machines: dict[str, Machine] = {}

    def warm_up(self) -> None:
        self._spare_gang(self._preparer)

    def prepare(self, request: PrepareRequest) -> Prepared:
        gang = self._wait_for_gang(self._shape if request.measure_precision else self._preparer)
        try:
            return gang.prepare(request)
        except GangLost as lost:
            self._pool.lose(gang, lost)
            raise DispatchError(f"preparing the data failed: {lost.detail}") from lost
        except MptuneError:
            raise
        except Exception as error:
            raise DispatchError(f"preparing the data failed: {one_line(error)}") from error
        finally:
            # If the gangs of this search have GPUs, no trial runs on one without.
            for gang in list(self._pool.gangs.values()):
                if gang.shape == self._preparer != self._shape and gang.trial is None:
                    self._pool.drop(gang, "the data are prepared")

    def capacity(self, in_flight: Sequence[Resources] = ()) -> int:
        shapes = [Shape.of(resources) for resources in in_flight]
        capacity = admission.trial_capacity(self._pool.nodes(), shapes, self._shape)
        # A cluster grows for queued trials: one more than fits is to be queued.
        return max(1, capacity + (self._autoscaler is not None and not self._pool.queue))

    def device(self, resources: Resources) -> Device:
        nodes = self._pool.nodes()
        if not self._cluster.head.is_away():
            self._machines = self._cluster.machines([node.id for node in nodes])
        known = [node for node in nodes if node.id in self._machines]
        return devices.device(resources, known, self._machines)

    def submit(self, trial: TrialSpec) -> None:
        self._pool.queue[trial.number] = DispatchedTrial(trial)

    def events(self, timeout_s: float) -> list[Event]:
        until = time.monotonic() + timeout_s
        while True:
            if self._cluster.head.is_reachable():
                with self._cluster.tolerate_absence():
                    self._pool.check_nodes()
                    self._admit()
                    self._request_machines()
                    self._pool.collect(0 if self._pool.outbox else until - time.monotonic())
            else:
                time.sleep(min(max(until - time.monotonic(), 0.0), SLICE_S))
            if self._pool.outbox or time.monotonic() >= until:
                break
        out, self._pool.outbox = self._pool.outbox, []
        for event in out:
            self._metrics.count(event)
        return out

    def decide(self, number: int, go_on: bool) -> None:
        gang = self._pool.of(number)
        if gang and gang.state.is_ready:
            gang.decide(go_on)

    def stop(self, number: int, reason: StopReason) -> None:
        gang = self._pool.of(number)
        if gang and gang.state.is_ready:
            gang.stop(reason)
        elif gang or number in self._pool.queue:
            if gang:
                gang.trial = None
            self._pool.queue.pop(number, None)
            self._pool.outbox.append(Stopped(number=number, reason=reason, step=0))

    def state(self) -> DispatchState:
        gangs, now = self._pool.gangs.values(), time.monotonic()
        waiting, held, nodes = self._waiting(), self._held(now), self._pool.nodes()
        queue = []
        for number, wait in admission.waits(waiting, held, nodes, now).items():
            trial = self._pool.queue[number]
            queue.append(
                QueuedTrial(
                    number=number,
                    policy_label=trial.spec.policy_label,
                    size_label=trial.spec.size_label,
                    workers=trial.shape.workers,
                    waited_s=now - trial.since,
                    wait=wait,
                )
            )
        return DispatchState(
            tuple(gang.status() for gang in gangs), tuple(queue), self._metrics_url
        )

    def publish(self, status: Status) -> None:
        self._metrics.publish(status)

    def address(self) -> str | None:
        """HOST:PORT of the shared Ray cluster; None on this machine's own resources."""
        return self._cluster.address

    def close(self) -> None:
        self._pool.queue.clear()
        if not self._cluster.head.is_away():
            for gang in list(self._pool.gangs.values()):
                self._pool.drop(gang, "closed")
            self._request_machines()
        self._cluster.close()

    def _admit(self) -> None:
        waiting, now = self._waiting(), time.monotonic()
        if not waiting:
            return
        decisions = admission.admit(waiting, self._held(now), self._pool.nodes(), now)
        refused = {d.number for d in decisions if isinstance(d, Refuse)}
        self._fitted |= {w.shape: now for w in waiting if w.number not in refused}
        for decision in decisions:
            match decision:
                case Retire(name):
                    self._pool.drop(self._pool.gangs[name], "its place was needed")
                case Start(number, name, placement):
                    # The trial stays queued if Ray fails to make its gang.
                    shape = self._pool.queue[number].shape
                    gang = (
                        self._pool.gangs[name]
                        if name
                        else self._pool.start(shape, placement, number)
                    )
                    gang.assign(self._pool.queue.pop(number))
                case Refuse(number, detail):
                    self._refuse(self._pool.queue[number], detail)

    def _refuse(self, trial: DispatchedTrial, detail: str) -> None:
        """Fail the trial once its time to wait for nodes that may join or return is over."""
        last = self._fitted.get(trial.shape)
        patience_s = self._patience_s if last is None else max(self._patience_s, RETURNING_S)
        if time.monotonic() - max(trial.since, last or trial.since) >= patience_s:
            number = trial.spec.number
            del self._pool.queue[number]
            self._pool.outbox.append(Failed(number=number, reason="wrong_input", detail=detail))

    def _waiting(self) -> list[WaitingTrial]:
        known = self._forecast.seconds if self._forecast else lambda _: None
        return [
            WaitingTrial(t.spec.number, t.shape, t.since, known(t.spec))
            for t in self._pool.queue.values()
        ]

    def _held(self, now: float) -> list[PlacedGang]:
        """The gangs, the longest idle first, with predicted ends; and what others use."""
        self._pool.nodes()  # updates the usage of others if it is time to
        held = []
        for gang in sorted(self._pool.gangs.values(), key=lambda g: g.last_end or g.started_at):
            left_s = None
            if gang.trial and self._forecast:
                left_s = self._forecast.left_s(gang.trial.spec, now)
            held.append(replace(gang.held(), ends=None if left_s is None else now + left_s))
        return [*held, *self._pool.others.held()]

    def _request_machines(self, *more: Shape) -> None:
        """Ask the autoscaler for room for the gangs and for what is queued."""
        if self._autoscaler:
            queued = [*(trial.shape for trial in self._pool.queue.values()), *more]
            # What others use is no room for queued trials.
            others = self._pool.others.lasting() if queued else []
            gangs = [gang.shape for gang in self._pool.gangs.values()]
            self._autoscaler.request([*gangs, *queued, *others])

    def _wait_for_gang(self, shape: Shape) -> Gang:
        """A gang that is ready to prepare data.

        Raises:
            DispatchError: it cannot be placed or started.
        """
        while not (gang := self._spare_gang(shape)).state.is_ready:
            if self._cluster.head.is_reachable():
                self._pool.collect(SLICE_S)
                self._pool.check_nodes()  # it may have to be placed elsewhere
            else:
                time.sleep(SLICE_S)
            if gang.lost:
                raise DispatchError(f"no worker could be started: {gang.lost.detail}")
        return gang

    def _spare_gang(self, shape: Shape) -> Gang:
        """A gang without a trial, perhaps still starting, with GPUs if the shape has them.

        Waits until other programs leave room, or until machines that were asked for have joined.

        Raises:
            DispatchError: there is no room, and no machine joins in time; or the head is lost.
        """
        spare = [gang for gang in self._pool.gangs.values() if gang.trial is None]
        for gang in spare:
            if gang.shape.gpus or not shape.gpus:
                return gang
        if not self._pool.free().fits(shape):
            for gang in spare:
                self._pool.drop(gang, "its place was needed")
        give_up = time.monotonic() + (self._patience_s if self._autoscaler else 0.0)
        while (placement := self._pool.free().place(shape)) is None:
            fits = FreeResources.of(self._pool.nodes()).fits(shape)
            if not fits and time.monotonic() >= give_up:
                raise DispatchError(f"no room in the cluster for {shape}")
            if self._cluster.head.is_reachable():
                self._request_machines(shape)
            time.sleep(SLICE_S)
        self._fitted[shape] = time.monotonic()
        return self._pool.start(shape, placement)
