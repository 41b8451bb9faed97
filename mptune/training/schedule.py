"""Training progress, and the learning rate there: pure functions of what was spent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mptune.spec.schema import LearningRateSchedule, Training

CURVE_POINTS = 100
"""Points of a recorded loss curve, evenly spaced in progress; fewer in a shorter training."""


def learning_rate_factor(schedule: LearningRateSchedule, progress: float) -> float:
    """Learning rate as a fraction of its peak.

    Linear from 0 over the warm-up, then 1 until the decay, then to `final` along the named curve.
    With a short decay this is warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395).
    """
    if progress < schedule.warmup:
        return progress / schedule.warmup
    begin = max(schedule.warmup, 1.0 - schedule.decay)
    done = min(1.0, max(0.0, progress - begin) / max(1.0 - begin, 1e-12))
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}
    share = left[schedule.kind]
    return share + (1.0 - share) * schedule.final


@dataclass(frozen=True)
class TrainingBudget:
    """What a training may spend of one quantity, and the number of steps expected of it."""

    amount: float
    quantity: str
    steps: int
    """Exact for tokens, expected for FLOPs, 0 (unknown) for seconds."""

    @classmethod
    def of(cls, training: Training, tokens_per_step: int, flops_per_step: float) -> TrainingBudget:
        """The one budget that a training section names; per-step figures are expectations."""
        if training.budget_tokens is not None:
            steps = math.ceil(training.budget_tokens / tokens_per_step)
            return cls(float(steps * tokens_per_step), "tokens", steps)
        if training.budget_flops is not None:
            steps = max(1, round(training.budget_flops / flops_per_step))
            return cls(training.budget_flops, "flops", steps)
        return cls(float(training.budget_seconds or 0.0), "seconds", 0)

    def progress(self, spent: Spent) -> float:
        """The fraction that is spent, in [0, 1]."""
        return min(1.0, float(getattr(spent, self.quantity)) / self.amount)

    def expected_steps(self, spent: Spent) -> int:
        """Expected steps of the whole training; 0 if not known yet."""
        progress = self.progress(spent)
        if self.quantity == "tokens" or not progress:
            return self.steps
        return max(spent.steps, round(spent.steps / progress))


@dataclass
class Spent:
    """What a training has used and recorded so far; with the weights, all that a resume needs."""

    steps: int = 0
    tokens: int = 0
    observed: int = 0
    masked: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    shared: tuple[int, float] = (0, 0.0)
    """Of `tokens` and `flops`: those of a prefix that another trial trained."""
    loss_curve: list[tuple[float, float]] = field(default_factory=list)

    learning: list[dict[str, Any]] = field(default_factory=list)
    """A `LearningPoint` of each rung, as JSON."""
    rung_scores: list[list[float]] = field(default_factory=list)
    """Nats of each sequence of the rung plan, by rung."""
    pending: tuple[float, float] = (0.0, 0.0)
    """Loss sum and masked positions since the last point of the curve."""

    code: tuple[float, int] | None = (0.0, 0)
    """Prequential code length so far, nats and positions; None if it is not defined."""
    by_rate: list[list[float]] = field(default_factory=list)
    """Statistics of an adaptive policy: sums by interval of the mask rate, [3, R]."""
    learned: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """(progress, law) of each choice of an adaptive policy."""

    def record(self, progress: float, loss_sum: float, masked: int) -> None:
        """Add a step's loss; close a point of the curve when its share of progress is over."""
        nats, count = self.pending[0] + loss_sum, self.pending[1] + masked
        self.pending = (nats, count)
        due = not self.loss_curve or progress - self.loss_curve[-1][0] >= 1.0 / CURVE_POINTS
        if count and (due or progress >= 1.0):
            self.loss_curve.append((progress, nats / count))
            self.pending = (0.0, 0.0)

    def as_json(self) -> dict[str, Any]:
        """Inverse of `Spent(**values)`."""
        return dict(vars(self))
