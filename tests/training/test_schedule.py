"""Progress and learning rate as functions of what was spent."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.spec.schema import LearningRateSchedule, Training
from mptune.training.schedule import CURVE_POINTS, Spent, TrainingBudget, learning_rate_factor


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate(kind):
    schedule = LearningRateSchedule(kind=kind, warmup=0.2, final=0.1)
    factors = [learning_rate_factor(schedule, s) for s in np.linspace(0, 1, 101)]
    assert factors[0] == 0.0
    assert factors[10] == pytest.approx(0.5)
    assert max(factors) == factors[20] == pytest.approx(1.0)
    assert (np.diff(factors[20:]) <= 1e-12).all()
    assert factors[60] == pytest.approx(1.0 if kind == "constant" else 0.55)
    assert factors[100] == pytest.approx(1.0 if kind == "constant" else 0.1)


@pytest.mark.parametrize(("kind", "half"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1)])
def test_learning_rate_is_constant_until_a_short_decay(kind, half):
    schedule = LearningRateSchedule(kind=kind, warmup=0.1, decay=0.2, final=0.1)
    factors = [learning_rate_factor(schedule, s) for s in (0.05, 0.1, 0.5, 0.8, 0.9, 1.0)]
    assert factors == pytest.approx([0.5, 1, 1, 1, half, 1.0 if kind == "constant" else 0.1])
    late = LearningRateSchedule(kind="linear", warmup=0.9, decay=0.2)
    assert learning_rate_factor(late, 0.95) == pytest.approx(0.5), "never before the warm-up ends"


def test_learning_rate_without_warmup_or_with_nothing_else():
    assert learning_rate_factor(LearningRateSchedule(warmup=0.0), 0.0) == 1.0
    assert learning_rate_factor(LearningRateSchedule(warmup=1.0), 0.5) == 0.5


def test_token_budget_is_whole_steps():
    budget = TrainingBudget.of(
        Training(budget_tokens=1000), tokens_per_step=300, flops_per_step=1.0
    )
    assert budget.steps == 4
    assert budget.progress(Spent(tokens=600)) == 0.5
    assert budget.progress(Spent(tokens=1200)) == 1.0


def test_flops_budget_counts_what_was_spent():
    budget = TrainingBudget.of(Training(budget_flops=1e6), tokens_per_step=300, flops_per_step=1e5)
    assert (budget.steps, budget.progress(Spent(flops=5e5))) == (10, 0.5)
    assert budget.expected_steps(Spent(steps=4, flops=5e5)) == 8
    assert budget.progress(Spent(flops=1.3e6)) == 1.0, "the last step may spend more"


def test_seconds_budget_learns_its_steps():
    budget = TrainingBudget.of(Training(budget_seconds=10), tokens_per_step=300, flops_per_step=1e5)
    assert budget.expected_steps(Spent()) == 0
    assert budget.expected_steps(Spent(steps=30, seconds=2.5)) == 120


def test_loss_curve_is_a_mean_over_masked_positions_and_bounded():
    spent = Spent()
    for step in range(1, 1001):
        spent.record(step / 1000, loss_sum=2.0 * step, masked=step)
    assert len(spent.loss_curve) <= CURVE_POINTS + 1
    assert spent.loss_curve[-1] == (1.0, 2.0)
    assert all(loss == pytest.approx(2.0) for _, loss in spent.loss_curve)
