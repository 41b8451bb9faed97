"""Predicts how long trials take, from their budgets and the speed of earlier trials.

Pure: times are seconds from any origin, given by the caller. Speed is measured per model and gang;
the policy hardly affects it. A trial of an unmeasured kind is predicted to take as long as the
slowest kind that was measured, so that predictions are not too optimistic.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor
from typing import NamedTuple

from mptune.search.ledger import Work
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
"""The predicted rest of an overdue trial, as a share of the time since its last event."""

SETTLED = 0.05
"""Progress after the first report from which a speed counts as known: the first steps are slow."""


class Parts(NamedTuple):
    """Seconds of a whole trial, one part after the other."""

    setting_up_s: float
    """Before its first step; not counted by the ledger."""
    training_s: float
    """Including the scores at rungs."""
    scoring_s: float

    def from_first_step_s(self, done: float) -> float:
        """Seconds from the first step to the end, when this share of the training is done."""
        return self.training_s * max(0.0, 1 - done) + self.scoring_s


@dataclass
class SpeedTotals:
    """Totals of the finished trials of one kind; before the first, the speed of running ones."""

    trials: int = 0
    settled: bool = False
    """Whether the speed is measured beyond the first steps."""
    training_s: float = 0.0
    setting_up_s: float = 0.0
    rungs_s: float = 0.0
    scoring_s: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def add_result(self, result: TrialResult) -> None:
        """Add a finished trial of this kind."""
        cost = result.cost
        if self.trials == 0:
            self.training_s = self.tokens = self.flops = 0.0
        self.trials += 1
        self.training_s += cost.training_s
        known_s = cost.training_s + cost.scoring_s + cost.setting_up_s
        # `total_s` covers the last attempt only, `training_s` all attempts.
        self.rungs_s += max(0.0, cost.total_s - known_s)
        self.setting_up_s += cost.setting_up_s
        self.scoring_s += cost.scoring_s
        self.tokens += cost.tokens
        self.flops += cost.flops

    def add_progress(self, progress: Progress, for_s: float | None) -> None:
        """Add the speed of a running trial over `for_s` seconds; None: its first steps."""
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
        """The parts of a whole trial; None if the speed is not known."""
        training_s, ran = training.budget_seconds, max(1, self.trials)
        if training_s is None:
            done = self.tokens if training.budget_tokens is not None else self.flops
            if not done:
                return None
            budget = training.budget_tokens or training.budget_flops or 0.0
            training_s = budget * self.training_s / done
        rungs_s = self.rungs_s / ran
        return Parts(self.setting_up_s / ran, training_s + rungs_s, self.scoring_s / ran)


@dataclass
class _Run:
    """A running trial, as of its last event at time `at`."""

    trial: TrialSpec
    at: float
    progress: float = 0.0
    since: float | None = None
    """Progress at its first report of a speed."""


@dataclass
class Predictor:
    """Predicts durations of trials from the events of others."""

    _totals_of: defaultdict[str, SpeedTotals] = field(
        default_factory=lambda: defaultdict(SpeedTotals)
    )
    """By kind: trials of one model on gangs of one shape have the same speed."""
    _runs: dict[int, _Run] = field(default_factory=dict)

    def observe(self, trial: TrialSpec, event: Event, now: float) -> None:
        """Add an event of a trial."""
        run = self._runs.get(trial.number)
        since = run.since if run else None
        match event:
            case Started():
                share = event.resumed_at / max(1, event.total_steps)
                self._runs[trial.number] = _Run(trial, now, share)
            case Progress():
                for_s = now - run.at if run and since is not None else None
                self._totals_of[_kind(trial)].add_progress(event, for_s)
                since = event.progress if since is None else since
                self._runs[trial.number] = _Run(trial, now, event.progress, since)
            case Scoring():
                self._runs[trial.number] = _Run(trial, now, 1.0, since)
            case Finished():
                self._runs.pop(trial.number, None)
                self.add_result(trial, event.result)
            case Stopped() | Failed():
                self._runs.pop(trial.number, None)

    def add_result(self, trial: TrialSpec, result: TrialResult) -> None:
        """Add a finished trial, also one of an earlier driver."""
        self._totals_of[_kind(trial)].add_result(result)

    def seconds(self, trial: TrialSpec) -> float | None:
        """Predicted seconds of the trial on its gang; None before the first measurement."""
        parts = self._parts(trial)
        return None if parts is None else sum(parts)

    def left_s(self, trial: TrialSpec, now: float) -> float | None:
        """Predicted seconds to the trial's end, all of them if it does not run; or None."""
        left_s = self.remaining(trial.number, now)
        return self.seconds(trial) if left_s is None else left_s

    def seconds_from_first_step(self, trial: TrialSpec, done: float = 0.0) -> float | None:
        """Predicted seconds from the first step to the end, as the ledger counts; or None."""
        parts = self._parts(trial)
        return None if parts is None else parts.from_first_step_s(done)

    def is_measured(self, trial: TrialSpec) -> bool:
        """Whether trials of its kind were measured, or its budget is in seconds."""
        return trial.training.budget_seconds is not None or self._measured(trial) is not None

    def is_settled(self, number: int) -> bool:
        """Whether the speed of a running trial is measured beyond its first steps."""
        run = self._runs.get(number)
        return run is not None and run.since is not None and run.progress - run.since >= SETTLED

    def remaining(self, number: int, now: float) -> float | None:
        """Predicted seconds to the end of a running trial; None if not known."""
        run = self._runs.get(number)
        parts = self._parts(run.trial) if run else None
        if run is None or parts is None:
            return None
        silent_s = now - run.at
        left_s = parts.from_first_step_s(run.progress) - silent_s
        return max(left_s, OVERDUE * silent_s)

    def _parts(self, trial: TrialSpec) -> Parts | None:
        if (measured := self._measured(trial)) is not None:
            return measured
        others = [parts for p in self._totals_of.values() if (parts := p.parts(trial.training))]
        if not others and trial.training.budget_seconds is not None:
            return Parts(0.0, trial.training.budget_seconds, 0.0)
        return max(others, key=sum) if others else None

    def _measured(self, trial: TrialSpec) -> Parts | None:
        totals = self._totals_of.get(_kind(trial))
        return totals.parts(trial.training) if totals else None


def _kind(trial: TrialSpec) -> str:
    """Key of the trials that have the same speed: model and gang."""
    r = trial.resources
    # As floats: a storage returns a default of 0 as 0.0.
    each = float(r.cpus_per_worker), float(r.gpus_per_worker)
    return json.dumps([trial.model, r.workers, *each], sort_keys=True)


# --- a whole study -----------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialInFlight:
    """A trial in flight: its work so far, its resources and its predicted rest in seconds."""

    used: Work
    resources: Resources
    left_s: float | None

    def left(self, mean: Work) -> Work:
        """Predicted further work; without a prediction, the rest of a mean trial."""
        if self.left_s is None:
            return (mean + self.used.times(-1)).at_least(Work())
        return Work.of(self.left_s, self.resources)


def forecast_study(
    in_flight: Sequence[TrialInFlight],
    spend: Spend,
    *,
    total: float,
    ended: float,
    unrun: int,
    used: Work,
    speed: float | None,
) -> Forecast:
    """Predict total usage and remaining time of a study, which its budgets may end early.

    A trial to come is predicted to use the mean of those that ran, including pruned ones; none is
    assumed to be refused or to copy another trial's result.

    Args:
        total: trials that the spec requests.
        ended: how many of these are used, see `Trials.used`.
        unrun: ended trials that used nothing: refused, or copies of another trial's result.
        used: by trials that have ended.
        speed: worker-seconds per second of wall clock; None if not known yet.
    """
    # The mean of trials that ran; before the first, of the predictions for those in flight.
    ran = [used] if (count := ended - unrun) > 0 else []
    if not ran:
        ran = [trial.used + trial.left(Work()) for trial in in_flight if trial.left_s is not None]
        count = len(ran)
    flying, more = ended + len(in_flight), total - ended - len(in_flight)
    if not ran:
        return Forecast(trials=round(flying + max(0, more)))
    mean = sum(ran, Work()).times(1 / count)
    left = sum((trial.left(mean) for trial in in_flight), Work())
    # Number of further trials that each budget has room for.
    new, limited_by = max(0, more), None
    for key, budget, spent, each in (
        ("budget_worker_seconds", spend.budget_worker_seconds,
         spend.worker_seconds + left.worker_s, mean.worker_s),
        ("budget_gpu_hours", spend.budget_gpu_hours,
         spend.gpu_hours + left.gpu_hours, mean.gpu_hours),
        ("budget_seconds", spend.budget_seconds,
         spend.seconds, mean.worker_s / speed if speed else 0.0),
    ):  # fmt: skip
        if (
            budget is not None
            and each > 0
            and (room := max(0, floor((budget - spent) / each))) < new
        ):
            new, limited_by = room, key
    left += mean.times(new)
    longest_s = max((trial.left_s or 0.0 for trial in in_flight), default=0.0)
    return Forecast(
        trials=round(flying + new),
        worker_seconds=spend.worker_seconds + left.worker_s,
        gpu_hours=spend.gpu_hours + left.gpu_hours,
        left_s=max(left.worker_s / speed, longest_s) if speed else None,
        limited_by=limited_by,
    )
