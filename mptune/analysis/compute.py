"""Equivalent compute: what share of one arm's cost another needs to reach its score.

Read off the learning curves, which all are scores of the one plan of the rungs, linear in the
logarithm of the cost between rungs. The interval carries both noises: whole curves are drawn around
the mean ones with the crossed model's joint covariance (`mptune.analysis.crossed.joint_noise`), and
each draw is read in turn.

A learning rate that falls to the end of the budget holds the curve down before that end, so an arm
that had planned for less would have got there sooner: factors below 1 are cautious ones.

A curve says nothing before its first rung and behind its end. Where the interval reaches there, a
factor is not stated: only its finite end is, as a bound.

Shape suffixes: S seeds, R rungs (the end of training the last), N sequences, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias

import numpy as np

from mptune.analysis.crossed import Array, estimate, joint_noise
from mptune.trial import LearningPoint, Message, Trial

Unit: TypeAlias = Literal["tokens", "flops", "seconds"]

UNITS: tuple[Unit, ...] = ("tokens", "flops", "seconds")

Reading: TypeAlias = Literal["factor", "at most", "at least", "unknown"]


class EquivalentCompute(Message):
    """`arm` reaches the final LML of `reaches` with `factor` of what `reaches` spent.

    Every ordered pair of the baseline and a challenger has one for each unit, so that a report can
    say it of whichever arm is ahead.

    Attributes:
        arm: whose learning curve is read.
        reaches: whose final LML is the level.
        level: that LML, nats per token, on the plan of the rungs.
        factor: cost of `arm` at the level over the whole cost of `reaches`; None unless both ends
            of the interval are finite.
        low: end of the interval; None: before the first rung.
        high: end of the interval; None: not reached.
        confidence: of the interval, which carries both noises.
        reading: what can be stated: the factor, at most `high`, at least `low`, or nothing.
        spent: whole cost of `arm` over that of `reaches`.
        probability_reached: that `arm` reaches the level at all.
        seeds: paired seeds that both curves are means of.
    """

    arm: str
    reaches: str
    unit: Unit
    level: float
    factor: float | None
    low: float | None
    high: float | None
    confidence: float = 0.95
    reading: Reading
    spent: float
    probability_reached: float
    seeds: int


@dataclass(frozen=True, eq=False)
class Curves:
    """The learning curves of one arm, at the same rungs for every seed.

    Attributes:
        nats_per_sequence_SRN: on the plan of the rungs.
        cost_SR: what it had cost at each rung, by unit.
        progress_R: of training.
        tokens_per_sequence: mean number of observed positions per sequence of that plan.
    """

    name: str
    seeds: tuple[int, ...]
    nats_per_sequence_SRN: Array
    cost_SR: Mapping[Unit, Array]
    progress_R: tuple[float, ...]
    tokens_per_sequence: float

    def at(self, seeds: Sequence[int]) -> Curves:
        """These seeds only, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        costs = {unit: cost_SR[rows] for unit, cost_SR in self.cost_SR.items()}
        nats_SRN = self.nats_per_sequence_SRN[rows]
        return replace(self, seeds=tuple(seeds), nats_per_sequence_SRN=nats_SRN, cost_SR=costs)

    def mean_cost(self, unit: Unit) -> Array:
        """What it had cost at each rung, [R]: the mean over seeds."""
        return self.cost_SR[unit].mean(0)


def curves_of(
    name: str, trials: Sequence[Trial], scores: Callable[[Trial], Mapping[str, Array]]
) -> Curves | None:
    """Learning curves of the trials that were scored at the same rungs; None if there are none.

    `scores` gives the stored scores of a trial, `at_rungs` [R, N] among them.
    """
    learned = [
        (trial.seed, trial.result.learning, z_RN)
        for trial in trials
        if trial.seed is not None and trial.result is not None and trial.result.learning
        if len(z_RN := scores(trial).get("at_rungs", np.zeros(0))) == len(trial.result.learning)
    ]
    alike = [row for row in learned if row[2].shape == learned[0][2].shape]
    if not alike:
        return None
    z_SRN, first = np.stack([z_RN for _, _, z_RN in alike]), alike[0][1]
    return Curves(
        name=name,
        seeds=tuple(seed for seed, _, _ in alike),
        nats_per_sequence_SRN=z_SRN,
        cost_SR={
            unit: np.array([[float(getattr(p, unit)) for p in points] for _, points, _ in alike])
            for unit in UNITS
        },
        progress_R=tuple(point.progress for point in first),
        tokens_per_sequence=float(z_SRN[0, 0].mean()) / first[0].nats_per_token,
    )


def mean_curve(curves: Curves) -> tuple[LearningPoint, ...]:
    """The mean over seeds at each rung; its standard error carries both noises."""
    tokens_R, flops_R, seconds_R = (curves.mean_cost(unit) for unit in UNITS)
    points = []
    for r, progress in enumerate(curves.progress_R):
        found = estimate(curves.nats_per_sequence_SRN[:, r])
        points.append(
            LearningPoint(
                progress=progress,
                tokens=round(tokens_R[r]),
                flops=flops_R[r],
                seconds=seconds_R[r],
                nats_per_token=found.mean / curves.tokens_per_sequence,
                se=found.se / curves.tokens_per_sequence,
            )
        )
    return tuple(points)


def equivalent_compute(
    arms: Sequence[Curves],
    baseline: str,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> list[EquivalentCompute]:
    """The baseline against every challenger, both ways, in every unit.

    Pairs without a common seed, or with other rungs, are left out.
    """
    base = next(arm for arm in arms if arm.name == baseline)
    found: list[EquivalentCompute] = []
    for arm in arms:
        seeds = sorted(set(arm.seeds) & set(base.seeds))
        alike = arm.nats_per_sequence_SRN.shape[1:] == base.nats_per_sequence_SRN.shape[1:]
        if arm is not base and seeds and alike:
            rng = np.random.default_rng(seed)
            found += _pair(arm.at(seeds), base.at(seeds), confidence, draws, rng)
    return found


def _pair(
    arm: Curves, base: Curves, confidence: float, draws: int, rng: np.random.Generator
) -> Iterator[EquivalentCompute]:
    both = arm, base
    z_CSN = np.concatenate([c.nats_per_sequence_SRN.swapaxes(0, 1) for c in both])
    mean_C = z_CSN.mean((1, 2)) / arm.tokens_per_sequence
    drawn_ZC = mean_C + joint_noise(z_CSN, draws, rng) / arm.tokens_per_sequence
    means, drawn = np.split(mean_C, 2), np.split(drawn_ZC, 2, axis=1)
    for runner, unit in product((0, 1), UNITS):
        whole = both[1 - runner].mean_cost(unit)[-1]
        factors_R = both[runner].mean_cost(unit) / whole
        level = float(means[1 - runner][-1])
        factor = float(_crossing(means[runner][None], np.array([level]), factors_R)[0])
        factor_Z = _crossing(drawn[runner], drawn[1 - runner][:, -1], factors_R)
        tails = (1 - confidence) / 2, (1 + confidence) / 2
        ends = np.quantile(factor_Z, tails, method="nearest")
        # All draws before the first rung, or none that gets there: bounds as well.
        low = None if ends[0] == -math.inf else float(min(ends[0], factors_R[-1]))
        high = None if ends[1] == math.inf else float(max(ends[1], factors_R[0]))
        reading: Reading = "at least" if low is not None else "unknown"
        if high is not None:
            reading = "at most" if low is None or not math.isfinite(factor) else "factor"
        yield EquivalentCompute(
            arm=both[runner].name,
            reaches=both[1 - runner].name,
            unit=unit,
            level=level,
            factor=factor if reading == "factor" else None,
            low=low,
            high=high,
            confidence=confidence,
            reading=reading,
            spent=float(factors_R[-1]),
            probability_reached=float(np.mean(factor_Z < math.inf)),
            seeds=len(arm.seeds),
        )


def _crossing(curve_ZR: Array, level_Z: Array, cost_R: Array) -> Array:
    """Cost at which each curve first reaches its level; infinite before and behind the rungs."""
    above_ZR = curve_ZR >= level_Z[:, None]
    first_Z = above_ZR.argmax(1)
    after_Z, rows_Z = np.maximum(first_Z, 1), np.arange(len(curve_ZR))
    low_Z, high_Z = curve_ZR[rows_Z, after_Z - 1], curve_ZR[rows_Z, after_Z]
    climb_Z = np.where(high_Z > low_Z, high_Z - low_Z, 1.0)
    share_Z = np.clip((level_Z - low_Z) / climb_Z, 0.0, 1.0)
    log_R = np.log(cost_R)
    cost_Z: Array = np.exp((1 - share_Z) * log_R[after_Z - 1] + share_Z * log_R[after_Z])
    cost_Z[above_ZR[:, 0]] = -math.inf
    cost_Z[~above_ZR.any(1)] = math.inf
    return cost_Z
