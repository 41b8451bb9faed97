"""What trials may use: which of them may start, and which have to stop.

A trial starts only if it is forecast to fit in what the others leave of the budgets. The first of
its kind starts without a forecast, and speeds change: a running one that turns out not to fit is
stopped at a checkpoint, and whatever still runs when a budget is all but spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mptune.search.forecast import Predictor, Work
from mptune.search.ledger import Ledger
from mptune.search.resumable import share_done
from mptune.trial import TrialSpec

STOPPING_S = 1.0
"""What a running trial is reckoned to take yet when it is asked to stop: a step, a checkpoint."""

TOLERANCE = 0.1
"""Running trials are stopped for a forecast only if it would still not fit were it so much less."""


@dataclass(frozen=True)
class Budget:
    """What all trials together may use; None is no limit."""

    worker_s: float | None = None
    gpu_hours: float | None = None
    wall_s: float | None = None
    """Of drivers, over all resumes. No trial starts after this; those that run go on."""

    @property
    def is_of_work(self) -> bool:
        """Whether it limits more than the clock."""
        return self.worker_s is not None or self.gpu_hours is not None

    def __str__(self) -> str:
        sides = self._sides(Work(), 0.0)
        return ", ".join(f"{side.limit:.4g} of search.{side.key}" for side in sides)

    def times(self, share: float) -> Budget:
        """A part of it."""
        limits = (self.worker_s, self.gpu_hours, self.wall_s)
        return Budget(*(None if limit is None else share * limit for limit in limits))

    def reached(self, used: Work, wall_s: float = 0.0) -> str | None:
        """Which limit nothing is left of, in words; None if none."""
        found = (side for side in self._sides(used, wall_s) if side.left <= 0)
        return next((str(side) for side in found), None)

    def nearest(self, used: Work) -> str:
        """The limit of which the smallest share is left, in words."""
        return str(min(self._sides(used, 0.0), key=lambda side: side.left / (side.limit or 1)))

    def lacks(self, used: Work, more: Work) -> str | None:
        """What more is needed than is left, in words; None if it fits."""
        for side, needed in zip(self._sides(used, 0.0), self._sides(more, 0.0), strict=True):
            if needed.used > side.left:
                left = max(0.0, side.left)
                return f"forecast to take {needed.used:.4g} of search.{side.key}, {left:.4g} left"
        return None

    def _sides(self, used: Work, wall_s: float) -> Iterator[_Side]:
        if self.worker_s is not None:
            yield _Side("budget_worker_seconds", used.worker_s, self.worker_s)
        if self.gpu_hours is not None:
            yield _Side("budget_gpu_hours", used.gpu_s / 3600, self.gpu_hours)
        if self.wall_s is not None:
            yield _Side("budget_seconds", wall_s, self.wall_s)


@dataclass(frozen=True)
class _Side:
    """One limit, by its key in the spec."""

    key: str
    used: float
    limit: float

    @property
    def left(self) -> float:
        return self.limit - self.used

    def __str__(self) -> str:
        return f"{self.used:.4g} of {self.limit:.4g} used of search.{self.key}"


@dataclass(frozen=True)
class Allowance:
    """What is left of a budget, and for whom. Times are monotonic seconds."""

    budget: Budget = field(default_factory=Budget)
    predictor: Predictor = field(default_factory=Predictor)
    ledger: Ledger = field(default_factory=Ledger)

    def used(self, now: float) -> Work:
        """By all trials, those that run included."""
        return Work(*self.ledger.so_far(now))

    def lacking(self, trial: TrialSpec, others: Iterable[TrialSpec], now: float) -> str | None:
        """What a trial is forecast to need that these others, in flight, do not leave it.

        Each needs what it takes to stop, at least: `excess` would stop it as soon as it ran.
        """
        if not self.budget.is_of_work:
            return None
        needed = self._rest(trial).at_least(_stopping(trial))
        return self.budget.lacks(self._promised(others, now), needed)

    def excess(self, flying: Iterable[TrialSpec], now: float) -> Iterator[tuple[TrialSpec, str]]:
        """Which trials in flight have to stop, and why: as few as let the rest end in time.

        Those that would take the longest yet are the first to go.
        """
        if not self.budget.is_of_work:
            return
        flying, used = list(flying), self.used(now)
        running = (trial for trial in flying if self.ledger.is_running(trial.number))
        if self.budget.reached(sum(map(_stopping, running), used)):
            yield from ((trial, self.budget.nearest(used)) for trial in flying)
            return
        left = {trial.number: self._surely_left(trial, now) for trial in flying}
        flying.sort(key=lambda trial: (left[trial.number].gpu_s, left[trial.number].worker_s))
        while flying:
            last = flying[-1]
            others = sum((left[trial.number] for trial in flying[:-1]), used)
            lacking = self.budget.lacks(others, left[last.number])
            if lacking is None or left[last.number] == Work():
                return
            yield flying.pop(), lacking

    def _promised(self, flying: Iterable[TrialSpec], now: float) -> Work:
        """What has been used, and what trials that wait or run are forecast to take still."""
        left = (self._left(trial, now).at_least(_stopping(trial)) for trial in flying)
        return sum(left, self.used(now))

    def _rest(self, trial: TrialSpec) -> Work:
        """What a trial that does not run takes yet, apart from what its checkpoint has of it.

        If nothing like it was measured, it takes as long as the longest one took: not as the
        slowest is forecast to, or one size that is too long would hold back all others.
        """
        done = share_done(trial)
        known = self.predictor.knows(trial)
        seconds = self.predictor.counted(trial, done) if known else None
        if seconds is None:
            return Work(self.ledger.most_worker_s, self.ledger.most_gpu_s).times(1 - done)
        return _work(trial, seconds)

    def _left(self, trial: TrialSpec, now: float) -> Work:
        seconds = self.predictor.remaining(trial.number, now)
        return self._rest(trial) if seconds is None else _work(trial, seconds)

    def _surely_left(self, trial: TrialSpec, now: float) -> Work:
        """Nothing as long as the speed was measured once only: the first steps are slow."""
        seconds = self.predictor.remaining(trial.number, now)
        if seconds is None or not self.predictor.is_settled(trial.number):
            return Work()
        return _work(trial, seconds * (1 - TOLERANCE))


def _stopping(trial: TrialSpec) -> Work:
    return _work(trial, STOPPING_S)


def _work(trial: TrialSpec, seconds: float) -> Work:
    worker_s = seconds * trial.resources.workers
    return Work(worker_s, worker_s * trial.resources.gpus_per_worker)
