"""The status of a study, made from what its driver knows: the storage is not read for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from mptune.dispatch.base import Dispatcher
from mptune.search.budget import Allowance
from mptune.search.forecast import TrialInFlight, forecast_study
from mptune.search.in_flight import InFlight
from mptune.search.ledger import Work
from mptune.status import Forecast, Outlook, RunningTrial, Spend, Status
from mptune.study.history import History
from mptune.study.lease import this_process
from mptune.trial import StageName

EVERY_S = 1.0

MAX_SHARE = 0.05
"""Most of a driver's time that making a status may take."""


@dataclass
class Monitor:
    """Makes the status of a driver's study and hands it to `watchers`.

    Attributes:
        first_start: when this driver's first trial began, by `clock`.
    """

    study: str
    stage: StageName
    total: int
    dispatcher: Dispatcher
    allowance: Allowance
    watchers: Sequence[Callable[[Status], None]] = ()
    clock: Callable[[], float] = time.monotonic
    first_start: float | None = None
    _used_before: Work = field(init=False)
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._used_before = self.allowance.ledger.ended

    def is_due(self) -> bool:
        """Whether a second has passed, or more where making a status takes long."""
        return self.clock() >= self._next

    def show(
        self,
        history: History,
        flights: Collection[InFlight],
        spent_s: float,
        stopping: bool,
        outlook: Outlook | None = None,
    ) -> None:
        """Hand a new status to the watchers.

        Args:
            flights: trials between `study.ask` and `study.tell`.
            spent_s: wall-clock seconds of all drivers of the study.
            stopping: whether the driver was asked to stop.
            outlook: how sure a search is; once it ends by itself, no trial is asked for.
        """
        if not self.watchers:
            return
        now = self.clock()
        state = self.dispatcher.state()
        running = [flight for flight in flights if flight.ending is None]
        queued = {trial.number for trial in state.queue}
        used = self.allowance.ledger.so_far(now)
        limits = {limit.key: limit.most for limit in self.allowance.budget.limits(used)}
        spend = Spend(
            seconds=spent_s, worker_seconds=used.worker_s, gpu_hours=used.gpu_hours, **limits
        )
        ended = history.used + len(flights) - len(running)
        has_enough = outlook is not None and outlook.ended_by is not None
        total = ended + len(running) if has_enough else self.total
        status = Status(
            time=time.time(),
            study=self.study,
            stage=self.stage,
            driver=this_process(),
            stopping=stopping,
            trials=history.trials(self.total),
            best=history.best,
            running=tuple(self._row(f, now) for f in running if f.spec.number not in queued),
            queue=state.queue,
            gangs=state.gangs,
            metrics=state.metrics,
            spend=spend,
            forecast=self._forecast(running, total, ended, history.unrun, spend, now),
            outlook=outlook,
        )
        for watcher in self.watchers:
            watcher(status)
        self._next = now + max(EVERY_S, (self.clock() - now) / MAX_SHARE)

    def _forecast(
        self,
        running: Sequence[InFlight],
        total: float,
        ended: float,
        unrun: int,
        spend: Spend,
        now: float,
    ) -> Forecast:
        """See `forecast_study`."""
        ledger, predictor, speed = self.allowance.ledger, self.allowance.predictor, None
        if self.first_start is not None and now > self.first_start:
            used_s = spend.worker_seconds - self._used_before.worker_s
            speed = used_s / (now - self.first_start)
        in_flight = [
            TrialInFlight(
                ledger.used(flight.spec.number, now),
                flight.spec.resources,
                predictor.left_s(flight.spec, now),
            )
            for flight in running
        ]
        return forecast_study(
            in_flight, spend, total=total, ended=ended, unrun=unrun, used=ledger.ended, speed=speed
        )

    def _row(self, flight: InFlight, now: float) -> RunningTrial:
        return RunningTrial(
            number=flight.spec.number,
            policy_label=flight.spec.policy_label,
            size_label=flight.spec.size_label,
            workers=flight.spec.resources.workers,
            retries=flight.retries,
            left_s=self.allowance.predictor.left_s(flight.spec, now),
            state=flight.state.value,
            progress=flight.progress,
            loss=flight.loss,
            tokens_per_s=flight.tokens_per_s,
        )
