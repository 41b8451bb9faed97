"""Budgets: the share of each stage, which trials may start, and which must stop.

A trial starts only if it is forecast to fit in the budget that the trials in flight leave. The
first trial of a kind starts without a forecast, and speeds change: a running trial that no longer
fits is stopped at a checkpoint, and so are all trials when a budget is nearly spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mptune.search.forecast import Predictor
from mptune.search.in_flight import trained_share
from mptune.search.ledger import Ledger, Work
from mptune.spec.schema import SearchSpec
from mptune.trial import StageName, TrialSpec

STOPPING_S = 1.0
"""Seconds that a running trial takes to stop: a step and a checkpoint."""

TOLERANCE = 0.1
"""A running trial is stopped only if a forecast lower by this share would not fit either."""


@dataclass(frozen=True)
class Budget:
    """Limits for all trials together; None means no limit."""

    worker_s: float | None = None
    gpu_hours: float | None = None
    wall_s: float | None = None
    """Seconds of drivers, over all resumes. Then no trial starts; running ones continue."""

    @property
    def is_of_work(self) -> bool:
        """Whether it limits workers or GPUs, not only the clock."""
        return self.worker_s is not None or self.gpu_hours is not None

    def reached(self, used: Work) -> str | None:
        """Description of a limit that is used up; None if there is none."""
        found = (limit for limit in self.limits(used) if limit.left <= 0)
        return next((str(limit) for limit in found), None)

    def nearest(self, used: Work) -> str:
        """Description of the limit with the smallest share left."""
        return str(min(self.limits(used), key=lambda limit: limit.left / (limit.most or 1)))

    def lacks(self, used: Work, more: Work) -> str | None:
        """Description of a limit that `more` would exceed; None if it fits."""
        for limit, needed in zip(self.limits(used), self.limits(more), strict=True):
            if needed.used > limit.left:
                left = max(0.0, limit.left)
                return f"forecast to take {needed.used:.4g} of search.{limit.key}, {left:.4g} left"
        return None

    def limits(self, used: Work) -> Iterator[Limit]:
        """The limits that are set, and how much of each is used."""
        for key, of, most in (
            ("budget_worker_seconds", used.worker_s, self.worker_s),
            ("budget_gpu_hours", used.gpu_hours, self.gpu_hours),
            ("budget_seconds", used.wall_s, self.wall_s),
        ):
            if most is not None:
                yield Limit(key, of, most)


@dataclass(frozen=True)
class Limit:
    """One limit: its key in the spec, the usage, and the most that may be used."""

    key: str
    used: float
    most: float

    @property
    def left(self) -> float:
        return self.most - self.used

    def __str__(self) -> str:
        return f"{self.used:.4g} of {self.most:.4g} used of search.{self.key}"


@dataclass(frozen=True)
class Allowance:
    """The rest of a budget. Times are monotonic seconds."""

    budget: Budget = field(default_factory=Budget)
    predictor: Predictor = field(default_factory=Predictor)
    ledger: Ledger = field(default_factory=Ledger)

    def lacking(self, trial: TrialSpec, others: Iterable[TrialSpec], now: float) -> str | None:
        """Why the trial does not fit beside these other trials in flight; None if it fits.

        Each trial needs at least the time to stop: otherwise `excess` would stop it at once.
        """
        if not self.budget.is_of_work:
            return None
        needed = self._rest(trial).at_least(_stopping(trial))
        left = (self._left(other, now).at_least(_stopping(other)) for other in others)
        return self.budget.lacks(sum(left, self.ledger.so_far(now)), needed)

    def excess(self, in_flight: Iterable[TrialSpec], now: float) -> Iterator[tuple[TrialSpec, str]]:
        """(Trial that must stop, why): the fewest that let the others finish, longest first."""
        if not self.budget.is_of_work:
            return
        in_flight, used = list(in_flight), self.ledger.so_far(now)
        running = (trial for trial in in_flight if self.ledger.is_running(trial.number))
        if self.budget.reached(sum(map(_stopping, running), used)):
            yield from ((trial, self.budget.nearest(used)) for trial in in_flight)
            return
        left = {trial.number: self._surely_left(trial, now) for trial in in_flight}
        in_flight.sort(key=lambda trial: (left[trial.number].gpu_s, left[trial.number].worker_s))
        while in_flight:
            last = in_flight[-1]
            others = sum((left[trial.number] for trial in in_flight[:-1]), used)
            lacking = self.budget.lacks(others, left[last.number])
            if lacking is None or left[last.number] == Work():
                return
            yield in_flight.pop(), lacking

    def _rest(self, trial: TrialSpec) -> Work:
        """Forecast for a trial that is not running, from its checkpoint on.

        For a kind that was not measured it is the longest trial so far. The slowest forecast would
        be too cautious: one slow size would hold back all others.
        """
        done = trained_share(trial)
        known = self.predictor.is_measured(trial)
        seconds = self.predictor.seconds_from_first_step(trial, done) if known else None
        if seconds is None:
            return self.ledger.most.times(1 - done)
        return Work.of(seconds, trial.resources)

    def _left(self, trial: TrialSpec, now: float) -> Work:
        seconds = self.predictor.remaining(trial.number, now)
        return self._rest(trial) if seconds is None else Work.of(seconds, trial.resources)

    def _surely_left(self, trial: TrialSpec, now: float) -> Work:
        """Forecast minus the tolerance; zero until the speed beyond the first steps is known."""
        seconds = self.predictor.remaining(trial.number, now)
        if seconds is None or not self.predictor.is_settled(trial.number):
            return Work()
        return Work.of(seconds * (1 - TOLERANCE), trial.resources)


def _stopping(trial: TrialSpec) -> Work:
    return Work.of(STOPPING_S, trial.resources)


def planned_runs(spec: SearchSpec, ladder: int = 0) -> dict[StageName, int]:
    """Number of runs of each stage, in order of running.

    Args:
        ladder: runs of the ladder, before it is known the most that there can be
            (`mptune.search.arms.most_ladder_runs`).
    """
    search, comparison = spec.search, spec.compare
    return {
        "search": search.trials,
        "confirmation": search.confirm.top * search.confirm.seeds,
        "ladder": ladder,
        "comparison": len(comparison.arms) * comparison.seeds if comparison else 0,
    }


def total_budget(spec: SearchSpec) -> Budget:
    """The budget of all stages together."""
    search = spec.search
    return Budget(search.budget_worker_seconds, search.budget_gpu_hours, search.budget_seconds)


def stage_budget(
    spec: SearchSpec, stage: StageName, used: Mapping[StageName, Work], ladder: int = 0
) -> Budget:
    """A stage's share: stages share by number of runs, and later ones get the unused rest.

    Args:
        used: work of each stage so far.
        ladder: runs of the ladder.
    """
    runs = planned_runs(spec, ladder)
    stages = list(runs)
    at = stages.index(stage)
    later = stages[at + 1 :]
    kept = sum(runs[each] for each in later) / max(1, sum(runs[each] for each in stages[at:]))
    before = sum((used[each] for each in stages[:at]), Work())
    after = sum((used[each] for each in later), Work())

    def share(total: float | None, before: float, after: float) -> float | None:
        if total is None:
            return None
        left = max(0.0, total - before)
        return max(0.0, left - max(kept * left, after))

    total = total_budget(spec)
    return Budget(
        share(total.worker_s, before.worker_s, after.worker_s),
        share(total.gpu_hours, before.gpu_hours, after.gpu_hours),
        share(total.wall_s, before.wall_s, after.wall_s),
    )


def describe_shares(spec: SearchSpec, ladder: int = 0) -> str:
    """The share of each stage before any run, as text; empty without a budget.

    Args:
        ladder: as of `planned_runs`.
    """
    runs, parts = planned_runs(spec, ladder), []
    for stage, count in runs.items():
        share, limits = count / sum(runs.values()), total_budget(spec).limits(Work())
        shares = [f"{share * limit.most:.4g} of search.{limit.key}" for limit in limits if count]
        parts += [f"{stage}: {', '.join(shares)}"] if shares else []
    return "; ".join(parts)
