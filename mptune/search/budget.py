"""Budgets: how the stages of a run share them, which trials may start, and which must stop.

A trial starts only if it is forecast to fit in what the others leave of the budgets. The first of
its kind starts without a forecast, and speeds change: a running trial that turns out not to fit is
stopped at a checkpoint, and so are all when a budget is nearly spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mptune.search.forecast import Predictor, Work
from mptune.search.ledger import Ledger
from mptune.search.resume import trained_share
from mptune.spec.schema import SearchSpec
from mptune.trial import StageName, TrialSpec

STOPPING_S = 1.0
"""Seconds that a running trial takes to stop: a step and a checkpoint."""

TOLERANCE = 0.1
"""A running trial is stopped only if a forecast lower by this share would not fit either."""


@dataclass(frozen=True)
class Budget:
    """Limits for all trials together; None is no limit."""

    worker_s: float | None = None
    gpu_hours: float | None = None
    wall_s: float | None = None
    """Seconds of drivers, over all resumes. No trial starts after this; running ones go on."""

    @property
    def is_of_work(self) -> bool:
        """Whether it limits workers or GPUs, not only the clock."""
        return self.worker_s is not None or self.gpu_hours is not None

    def __str__(self) -> str:
        sides = self._sides(Work(), 0.0)
        return ", ".join(f"{side.limit:.4g} of search.{side.key}" for side in sides)

    def times(self, share: float) -> Budget:
        """A part of it."""
        limits = (self.worker_s, self.gpu_hours, self.wall_s)
        return Budget(*(None if limit is None else share * limit for limit in limits))

    def reached(self, used: Work, wall_s: float = 0.0) -> str | None:
        """The limit that is used up, as a text for people; None if none is."""
        found = (side for side in self._sides(used, wall_s) if side.left <= 0)
        return next((str(side) for side in found), None)

    def nearest(self, used: Work) -> str:
        """The limit with the smallest share left, as a text for people."""
        return str(min(self._sides(used, 0.0), key=lambda side: side.left / (side.limit or 1)))

    def lacks(self, used: Work, more: Work) -> str | None:
        """The limit that `more` exceeds, as a text for people; None if it fits."""
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
    """What is left of a budget. Times are monotonic seconds."""

    budget: Budget = field(default_factory=Budget)
    predictor: Predictor = field(default_factory=Predictor)
    ledger: Ledger = field(default_factory=Ledger)

    def used(self, now: float) -> Work:
        """Work of all trials, running ones included."""
        return Work(*self.ledger.so_far(now))

    def lacking(self, trial: TrialSpec, others: Iterable[TrialSpec], now: float) -> str | None:
        """What the trial is forecast to need that these others in flight do not leave it.

        Each trial needs at least the time to stop: `excess` would stop it as soon as it ran.
        """
        if not self.budget.is_of_work:
            return None
        needed = self._rest(trial).at_least(_stopping(trial))
        return self.budget.lacks(self._promised(others, now), needed)

    def excess(self, flying: Iterable[TrialSpec], now: float) -> Iterator[tuple[TrialSpec, str]]:
        """(Trial that must stop, why): as few as let the rest finish, the longest first."""
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
        """Work so far, and the forecast of what these trials still need."""
        left = (self._left(trial, now).at_least(_stopping(trial)) for trial in flying)
        return sum(left, self.used(now))

    def _rest(self, trial: TrialSpec) -> Work:
        """Forecast of a trial that does not run, less what its checkpoint has.

        Where nothing like it was measured, the longest trial so far is taken. The slowest forecast
        would be too cautious: one size that takes too long would hold back all others.
        """
        done = trained_share(trial)
        known = self.predictor.is_measured(trial)
        seconds = self.predictor.seconds_from_first_step(trial, done) if known else None
        if seconds is None:
            return Work(self.ledger.most_worker_s, self.ledger.most_gpu_s).times(1 - done)
        return _work(trial, seconds)

    def _left(self, trial: TrialSpec, now: float) -> Work:
        seconds = self.predictor.remaining(trial.number, now)
        return self._rest(trial) if seconds is None else _work(trial, seconds)

    def _surely_left(self, trial: TrialSpec, now: float) -> Work:
        """Forecast less the tolerance; nothing before the speed beyond the first steps is known."""
        seconds = self.predictor.remaining(trial.number, now)
        if seconds is None or not self.predictor.is_settled(trial.number):
            return Work()
        return _work(trial, seconds * (1 - TOLERANCE))


def _stopping(trial: TrialSpec) -> Work:
    return _work(trial, STOPPING_S)


def _work(trial: TrialSpec, seconds: float) -> Work:
    worker_s = seconds * trial.resources.workers
    return Work(worker_s, worker_s * trial.resources.gpus_per_worker)


def planned_runs(spec: SearchSpec) -> dict[StageName, int]:
    """Runs that each stage is to make, stages in order of running."""
    search, comparison = spec.search, spec.compare
    return {
        "search": search.trials,
        "confirmation": search.confirm.top * search.confirm.seeds,
        "comparison": len(comparison.arms) * comparison.seeds if comparison else 0,
    }


def total_budget(spec: SearchSpec) -> Budget:
    """The budget of all stages together."""
    search = spec.search
    return Budget(search.budget_worker_seconds, search.budget_gpu_hours, search.budget_seconds)


def stage_budget(
    spec: SearchSpec, stage: StageName, used: Mapping[StageName, Mapping[str, float]]
) -> Budget:
    """A stage's share: stages share by their numbers of runs, and get what earlier ones left.

    Args:
        used: what each stage has used so far, keyed as the fields of `Budget`.
    """
    runs = planned_runs(spec)
    stages = list(runs)
    at = stages.index(stage)
    later = stages[at + 1 :]
    kept = sum(runs[each] for each in later) / max(1, sum(runs[each] for each in stages[at:]))
    limits = []
    for key in ("worker_s", "gpu_hours", "wall_s"):
        total: float | None = getattr(total_budget(spec), key)
        if total is not None:
            left = max(0.0, total - sum(used[each][key] for each in stages[:at]))
            total = max(0.0, left - max(kept * left, sum(used[each][key] for each in later)))
        limits.append(total)
    return Budget(*limits)


def describe_shares(spec: SearchSpec) -> str:
    """How the stages share the budget before anything has run; empty without a budget."""
    budget, runs = total_budget(spec), planned_runs(spec)
    parts = {
        stage: budget.times(count / sum(runs.values())) for stage, count in runs.items() if count
    }
    return "; ".join(f"{stage}: {part}" for stage, part in parts.items() if str(part))
