"""Whether one more trial is forecast to fit in what is left of a search's budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mptune.forecast import Predictor, Work
from mptune.ledger import Ledger
from mptune.trial import TrialSpec


@dataclass(frozen=True)
class Budget:
    """What all trials together may use; None is no limit."""

    worker_s: float | None = None
    gpu_hours: float | None = None

    def is_spent(self, used: Work) -> bool:
        """Whether nothing is left of one of them."""
        return any(left <= 0 for _, left, _ in self._sides(used, Work()))

    def lacks(self, used: Work, more: Work) -> str | None:
        """What more is needed than is left, in words; None if it fits."""
        for key, left, needed in self._sides(used, more):
            if needed > left:
                return f"forecast to take {needed:.4g} of search.{key}, {max(0.0, left):.4g} left"
        return None

    def _sides(self, used: Work, more: Work) -> Iterable[tuple[str, float, float]]:
        """(Key of the spec, what is left of it, what more is needed) of each limit."""
        if self.worker_s is not None:
            yield "budget_worker_seconds", self.worker_s - used.worker_s, more.worker_s
        if self.gpu_hours is not None:
            left = self.gpu_hours - used.gpu_s / 3600
            yield "budget_gpu_hours", left, more.gpu_s / 3600


@dataclass(frozen=True)
class Forecaster:
    """What trials have used and will use."""

    predictor: Predictor
    ledger: Ledger

    def used(self, now: float) -> Work:
        """By all trials, those that run included."""
        return Work(*self.ledger.so_far(now))

    def promised(self, flying: Iterable[TrialSpec], now: float) -> Work:
        """What has been used, and what trials that wait or run are forecast to take still."""
        total = self.used(now)
        for trial in flying:
            total += self._left(trial, now)
        return total

    def whole(self, trial: TrialSpec) -> Work:
        """What a trial takes in all: as long as the longest one if nothing like it was measured."""
        seconds = self.predictor.seconds(trial)
        if seconds is None:
            return Work(self.ledger.most_worker_s, self.ledger.most_gpu_s)
        return _work(trial, seconds)

    def _left(self, trial: TrialSpec, now: float) -> Work:
        seconds = self.predictor.remaining(trial.number, now)
        return self.whole(trial) if seconds is None else _work(trial, seconds)


def _work(trial: TrialSpec, seconds: float) -> Work:
    worker_s = seconds * trial.resources.workers
    return Work(worker_s, worker_s * trial.resources.gpus_per_worker)
