"""How long trials take, predicted from their budget and from the speed of those that ran.

Pure: times are seconds from any origin, given by the caller. Speed is measured by model and gang:
both decide it, and a policy hardly does. A trial that no measurement fits is predicted to take as
long as the slowest that was measured, so that nothing is promised too early.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Literal, NamedTuple

from mptune.spec.schema import Resources, Training
from mptune.status import Forecast, Spend
from mptune.trial import (
    Event,
    Failed,
    Finished,
    Progress,
    Scoring,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

OVERDUE = 0.1
"""A trial that should have ended goes on for this share of the time since it was last heard of."""


SETTLED = 0.05
"""Share of a training after whose first steps its speed is taken to be known."""


class Parts(NamedTuple):
    """Seconds of a whole trial, one part after the other."""

    setting_up_s: float
    """Before its first step. A ledger does not count it."""
    training_s: float
    """Rungs among it."""
    scoring_s: float

    def counted_s(self, done: float) -> float:
        """From the first step on, if this share of the training is done already."""
        return self.training_s * max(0.0, 1 - done) + self.scoring_s


@dataclass
class Pace:
    """Totals of finished trials of one kind; until one has finished, the mean speed of others."""

    trials: int = 0
    settled: bool = False
    """Whether more is known than the speed of one's first steps."""
    training_s: float = 0.0
    setting_up_s: float = 0.0
    rungs_s: float = 0.0
    scoring_s: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def finish(self, result: TrialResult) -> None:
        """A trial of this kind has finished."""
        cost = result.cost
        if self.trials == 0:
            self.training_s = self.tokens = self.flops = 0.0
        self.trials += 1
        self.training_s += cost.training_s
        known_s = cost.training_s + cost.scoring_s + cost.setting_up_s
        # The total is of the last attempt only, the training of all.
        self.rungs_s += max(0.0, cost.total_s - known_s)
        self.setting_up_s += cost.setting_up_s
        self.scoring_s += cost.scoring_s
        self.tokens += cost.tokens
        self.flops += cost.flops

    def go_on(self, progress: Progress, for_s: float | None) -> None:
        """One has run at this speed for so long; None of its first steps, which are slow."""
        if self.trials or (for_s is None and self.training_s):
            return
        if not self.settled:
            self.training_s = self.tokens = self.flops = 0.0
        self.settled = for_s is not None
        for_s = for_s or 1.0
        self.training_s += for_s
        self.tokens += for_s * progress.tokens_per_s
        self.flops += for_s * progress.flops_per_s

    def parts(self, training: Training) -> Parts | None:
        """Of a whole trial; None if its speed is not known."""
        training_s, ran = self._training_s(training), max(1, self.trials)
        if training_s is None:
            return None
        rungs_s = self.rungs_s / ran
        return Parts(self.setting_up_s / ran, training_s + rungs_s, self.scoring_s / ran)

    def _training_s(self, training: Training) -> float | None:
        if training.budget_seconds is not None:
            return training.budget_seconds
        done = self.tokens if training.budget_tokens is not None else self.flops
        budget = training.budget_tokens or training.budget_flops or 0.0
        return budget * self.training_s / done if done else None


@dataclass
class _Run:
    """A trial that runs: how far it was, and when that was heard."""

    trial: TrialSpec
    at: float
    progress: float = 0.0
    since: float | None = None
    """How far it was when it first told its speed."""


@dataclass
class Predictor:
    """Learns from the events of trials how long others will take."""

    _paces: dict[str, Pace] = field(default_factory=dict)
    _runs: dict[int, _Run] = field(default_factory=dict)

    def observe(self, trial: TrialSpec, event: Event, now: float) -> None:
        """Take in what a trial told."""
        match event:
            case Started():
                share = event.resumed_at / max(1, event.total_steps)
                self._runs[trial.number] = _Run(trial, now, share)
            case Progress():
                self._go_on(trial, event, now)
            case Scoring():
                self._runs[trial.number] = _Run(trial, now, 1.0, self._since(trial.number))
            case Finished():
                self._runs.pop(trial.number, None)
                self.learn(trial, event.result)
            case Stopped() | Failed():
                self._runs.pop(trial.number, None)

    def learn(self, trial: TrialSpec, result: TrialResult) -> None:
        """Take in a trial that has finished, perhaps long ago."""
        self._pace(trial).finish(result)

    def seconds(self, trial: TrialSpec, done: float = 0.0) -> float | None:
        """How long the trial takes on its gang, of whose training this share is done already.

        None as long as nothing was measured.
        """
        parts = self._parts(trial)
        return None if parts is None else parts.setting_up_s + parts.counted_s(done)

    def counted(self, trial: TrialSpec, done: float = 0.0) -> float | None:
        """The same from its first step on, as a ledger counts."""
        parts = self._parts(trial)
        return None if parts is None else parts.counted_s(done)

    def knows(self, trial: TrialSpec) -> bool:
        """Whether trials like it were measured, or its training is given in seconds."""
        return trial.training.budget_seconds is not None or self._own(trial) is not None

    def is_settled(self, number: int) -> bool:
        """Whether the speed of a trial that runs is known from more than its first steps."""
        run, since = self._runs.get(number), self._since(number)
        return run is not None and since is not None and run.progress - since >= SETTLED

    def _since(self, number: int) -> float | None:
        run = self._runs.get(number)
        return run.since if run else None

    def _go_on(self, trial: TrialSpec, event: Progress, now: float) -> None:
        run, since = self._runs.get(trial.number), self._since(trial.number)
        self._pace(trial).go_on(event, now - run.at if run and since is not None else None)
        since = event.progress if since is None else since
        self._runs[trial.number] = _Run(trial, now, event.progress, since)

    def remaining(self, number: int, now: float) -> float | None:
        """Seconds to the end of a trial that runs; None if that is not known."""
        run = self._runs.get(number)
        parts = self._parts(run.trial) if run else None
        if run is None or parts is None:
            return None
        silent_s = now - run.at
        left_s = parts.counted_s(run.progress) - silent_s
        return max(left_s, OVERDUE * silent_s)

    def _parts(self, trial: TrialSpec) -> Parts | None:
        if (measured := self._own(trial)) is not None:
            return measured
        others = [parts for p in self._paces.values() if (parts := p.parts(trial.training))]
        if not others and trial.training.budget_seconds is not None:
            return Parts(0.0, trial.training.budget_seconds, 0.0)
        return max(others, key=sum) if others else None

    def _own(self, trial: TrialSpec) -> Parts | None:
        pace = self._paces.get(_kind(trial))
        return pace.parts(trial.training) if pace else None

    def _pace(self, trial: TrialSpec) -> Pace:
        return self._paces.setdefault(_kind(trial), Pace())


def _kind(trial: TrialSpec) -> str:
    """What decides the speed: the model, and the gang."""
    r = trial.resources
    # As floats: a default of 0 comes back as 0.0 from a storage.
    each = float(r.cpus_per_worker), float(r.gpus_per_worker)
    return json.dumps([trial.model, r.workers, *each], sort_keys=True)


# --- a whole study -----------------------------------------------------------------------------

Limit = Literal["budget_seconds", "budget_worker_seconds", "budget_gpu_hours"]


@dataclass(frozen=True)
class Work:
    """Worker-seconds and GPU-seconds."""

    worker_s: float = 0.0
    gpu_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.worker_s + other.worker_s, self.gpu_s + other.gpu_s)

    def times(self, factor: float) -> Work:
        return Work(self.worker_s * factor, self.gpu_s * factor)

    def at_least(self, other: Work) -> Work:
        """The larger of both, side by side."""
        return Work(max(self.worker_s, other.worker_s), max(self.gpu_s, other.gpu_s))


@dataclass(frozen=True)
class Ahead:
    """A trial in flight: what it has used, on what, and for how many seconds it will go on."""

    used: Work
    resources: Resources
    left_s: float | None

    def left(self, mean: Work) -> Work:
        """What it will use yet; without a prediction, what is left of a mean trial."""
        if self.left_s is None:
            more = mean + self.used.times(-1)
            return Work(max(0.0, more.worker_s), max(0.0, more.gpu_s))
        worker_s = self.left_s * self.resources.workers
        return Work(worker_s, worker_s * self.resources.gpus_per_worker)

    def whole(self) -> Work | None:
        return None if self.left_s is None else self.used + self.left(Work())


@dataclass(frozen=True)
class Course:
    """A study so far."""

    total: int
    """Trials that were asked for."""
    ended: int
    unrun: int
    """Of those that have ended: they used nothing, being refused or another's twin."""
    used: Work
    """By trials that have ended."""
    speed: float | None
    """Worker-seconds per second of wall clock; None is not known yet."""


def outlook(course: Course, flying: Sequence[Ahead], spend: Spend) -> Forecast:
    """What the study will have used, and when, once it ends: by itself or with its budget.

    Trials that are not asked for yet are predicted to be as those that have run, pruned ones among
    them: none is counted on to be refused, or to be another's twin.
    """
    mean = _mean(course, flying)
    more = max(0, course.total - course.ended - len(flying))
    if mean is None:
        trials = course.ended + len(flying) + more
        return Forecast(
            trials=trials, worker_seconds=None, gpu_hours=None, left_s=None, limited_by=None
        )
    left = sum((trial.left(mean) for trial in flying), Work())
    limit, room = min(_rooms(course, mean, left, spend), key=lambda found: found[1])
    asked = min(more, room)
    left += mean.times(asked)
    return Forecast(
        trials=course.ended + len(flying) + asked,
        worker_seconds=spend.worker_seconds + left.worker_s,
        gpu_hours=spend.gpu_hours + left.gpu_s / 3600,
        left_s=_left_s(course, flying, left),
        limited_by=limit if room < more else None,
    )


def _mean(course: Course, flying: Iterable[Ahead]) -> Work | None:
    """What a trial takes that runs; until one has, what those in flight are predicted to."""
    ran = course.ended - course.unrun
    if ran > 0:
        return course.used.times(1 / ran)
    known = [whole for trial in flying if (whole := trial.whole())]
    return sum(known, Work()).times(1 / len(known)) if known else None


def _rooms(
    course: Course, mean: Work, left: Work, spend: Spend
) -> Iterator[tuple[Limit | None, int]]:
    """How many more trials each budget has room for."""
    yield None, course.total
    if spend.budget_worker_seconds is not None:
        free = spend.budget_worker_seconds - spend.worker_seconds - left.worker_s
        yield "budget_worker_seconds", _fit(free, mean.worker_s)
    if spend.budget_gpu_hours is not None:
        free = 3600 * (spend.budget_gpu_hours - spend.gpu_hours) - left.gpu_s
        yield "budget_gpu_hours", _fit(free, mean.gpu_s)
    if spend.budget_seconds is not None and course.speed is not None:
        free = (spend.budget_seconds - spend.seconds) * course.speed
        yield "budget_seconds", _fit(free, mean.worker_s)


def _fit(free: float, each: float) -> int:
    return floor(max(0.0, free) / each) if each > 0 else 2**31


def _left_s(course: Course, flying: Iterable[Ahead], left: Work) -> float | None:
    if not course.speed:
        return None
    longest_s = max((trial.left_s or 0.0 for trial in flying), default=0.0)
    return max(left.worker_s / course.speed, longest_s)
