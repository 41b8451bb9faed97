"""Where a study stands, from what its driver knows anyway: the storage is not asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mptune.dispatch.base import Dispatcher
from mptune.search.flight import InFlight
from mptune.search.forecast import Ahead, Course, Predictor, Work, outlook
from mptune.search.history import History
from mptune.search.ledger import Ledger
from mptune.status import RunningTrial, Spend, Status
from mptune.study.lock import this_process
from mptune.study.record import stage_of
from mptune.trial import TrialSpec

SHOWN_EVERY_S = 1.0

SHOWN_SHARE = 0.05
"""Most of a driver's time that showing where it stands may take."""


@dataclass(frozen=True)
class Moment:
    """What a driver knows now."""

    history: History
    flights: Sequence[InFlight]
    spent_s: float
    stopping: bool
    now: float = field(default_factory=time.monotonic)

    @property
    def flying(self) -> list[InFlight]:
        return [flight for flight in self.flights if flight.ending is None]

    @property
    def ended(self) -> int:
        """Trials that have ended, told or not."""
        return self.history.ended + len(self.flights) - len(self.flying)


@dataclass
class Watched:
    """A driver's study as others see it: makes a picture now and then and hands it to `watchers`.

    `budgets` are keyed as the fields of `Spend`.
    """

    study: str
    total: int
    dispatcher: Dispatcher
    predictor: Predictor
    ledger: Ledger
    budgets: Mapping[str, float | None]
    watchers: Sequence[Callable[[Status], None]] = ()
    first_start: float | None = None
    """When this driver's first trial began."""
    _used_before: float = 0.0
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._used_before = self.ledger.worker_s

    def show(self, moment: Moment) -> None:
        """Make a picture and hand it on, whether or not it is time for one."""
        if not self.watchers:
            return
        status = self._status(moment)
        for watcher in self.watchers:
            watcher(status)
        took_s = time.monotonic() - moment.now
        self._next = moment.now + max(SHOWN_EVERY_S, took_s / SHOWN_SHARE)

    def is_time(self) -> bool:
        """Every second, and seldom if making a picture takes long."""
        return time.monotonic() >= self._next

    def _status(self, moment: Moment) -> Status:
        there, flying, now = self.dispatcher.state(), moment.flying, moment.now
        spend = self._spend(moment.spent_s, now)
        queued = {trial.number for trial in there.queue}
        return Status(
            time=time.time(),
            study=self.study,
            stage=stage_of(self.study),
            driver=this_process(),
            stopping=moment.stopping,
            trials=moment.history.trials(self.total),
            best=moment.history.best,
            running=tuple(self._running(f, now) for f in flying if f.spec.number not in queued),
            queue=there.queue,
            gangs=there.gangs,
            metrics=there.metrics,
            spend=spend,
            forecast=outlook(self._course(moment), [self._ahead(f, now) for f in flying], spend),
        )

    def _running(self, flight: InFlight, now: float) -> RunningTrial:
        return RunningTrial(
            number=flight.spec.number,
            policy_label=flight.spec.policy_label,
            size_label=flight.spec.size_label,
            workers=flight.spec.resources.workers,
            retries=flight.retries,
            left_s=self._left_s(flight.spec, now),
            **vars(flight.heard),
        )

    def _ahead(self, flight: InFlight, now: float) -> Ahead:
        spec, used = flight.spec, Work(*self.ledger.used(flight.spec.number, now))
        return Ahead(used, spec.resources, self._left_s(spec, now))

    def _left_s(self, spec: TrialSpec, now: float) -> float | None:
        left_s = self.predictor.remaining(spec.number, now)
        return self.predictor.seconds(spec) if left_s is None else left_s

    def _spend(self, seconds: float, now: float) -> Spend:
        worker_s, gpu_s = self.ledger.so_far(now)
        return Spend(
            seconds=seconds, worker_seconds=worker_s, gpu_hours=gpu_s / 3600, **self.budgets
        )

    def _course(self, moment: Moment) -> Course:
        used = Work(self.ledger.worker_s, self.ledger.gpu_s)
        unrun, speed = moment.history.unrun, self._speed(moment.now)
        return Course(self.total, moment.ended, unrun, used, speed)

    def _speed(self, now: float) -> float | None:
        """Worker-seconds per second since this driver's first trial began."""
        if self.first_start is None or now <= self.first_start:
            return None
        return (self.ledger.so_far(now)[0] - self._used_before) / (now - self.first_start)
