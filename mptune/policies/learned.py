"""Laws of the mask rate that are learned in training, from the losses by rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mptune.policies.base import (
    RATE_BUCKETS,
    FloatArray,
    LossByRate,
    MaskPolicy,
    RatePolicy,
    percent,
)
from mptune.policies.compound import Mixture
from mptune.policies.distributions import Bounded, Histogram
from mptune.spec.schema import MaskRate


class Adaptive(RatePolicy):
    """Rates are drawn in proportion to the spread of the loss there, learned in training.

    It begins uniform. Every `every` of progress, each tenth of the rates gets the standard
    deviation of the sequences' mean losses in it as its weight, which is the allocation of draws
    with the least variance (Neyman 1934); a share `explore` stays uniform, so that every rate
    is still measured. With `reduction: elbo` the objective stays the accumulated one.

    Source: P-POTS, arXiv 2511.18159; here by tenths of the mask rate.
    """

    kind: Literal["adaptive"] = "adaptive"
    EXAMPLES = ({}, {"explore": 0.5, "reduction": "elbo", "corruption": "swap"})
    every: float = Field(0.05, gt=0, le=1, description="progress between choices, in (0, 1]")
    explore: float = Field(0.2, gt=0, le=1, description="share that stays uniform, in (0, 1]")

    @property
    def relearn_every(self) -> float | None:
        return self.every

    def cdf(self, rates: FloatArray) -> FloatArray:
        return rates

    def learn(self, losses: LossByRate) -> MaskPolicy:
        """A histogram of the spread by rate; a rate without losses gets the mean spread."""
        seen_R = losses.count >= 2
        spread_R = np.sqrt(losses.variance)
        usual = spread_R[seen_R].mean() if seen_R.any() else 0.0
        spread_R = np.where(seen_R, spread_R, usual) if usual else np.ones(len(spread_R))
        law_R = self.explore / len(spread_R) + (1 - self.explore) * spread_R / spread_R.sum()
        bins = tuple(round(float(w), 4) for w in law_R)
        return Histogram.model_validate({"bins": bins, **self.outer()})

    def law_words(self) -> str:
        return f"adaptive, {percent(self.explore)} % uniform"


class Clipped(Bounded):
    """The mask rate is uniform between bounds that give the training loss the least variance.

    Every `every` of progress the bounds are chosen again among tenths, at least `narrowest`
    apart: those of the least variance of a sequence's mean loss, within rates and between them.
    A share `explore` of the sequences draws from all rates, so that all bounds can be judged.

    Source: the data-driven clipped schedules of BD3LM (Arriola et al. 2025, arXiv 2503.09573).
    """

    kind: Literal["clipped"] = "clipped"
    EXAMPLES = ({}, {"low": 0.3, "high": 0.8, "reduction": "elbo"})
    low: float = Field(0.0, ge=0, lt=1, description="lowest mask rate at first, in [0, 1)")
    high: MaskRate = Field(1.0, description="highest mask rate at first, in (0, 1], above low")
    narrowest: MaskRate = Field(0.5, description="least distance of the bounds, in (0, 1]")
    every: float = Field(0.05, gt=0, le=1, description="progress between choices, in (0, 1]")
    explore: float = Field(0.1, gt=0, lt=1, description="share over all rates, in (0, 1)")

    @property
    def relearn_every(self) -> float | None:
        return self.every

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self._between(self.low, self.high).pmf(length, progress)

    def learn(self, losses: LossByRate) -> MaskPolicy:
        """The bounds of least variance; the first bounds until each tenth has two sequences."""
        if (losses.count < 2).any():
            return self._between(self.low, self.high)
        wide = max(1, round(self.narrowest * RATE_BUCKETS))
        windows = [
            (low, high)
            for low in range(RATE_BUCKETS)
            for high in range(low + wide, RATE_BUCKETS + 1)
        ]
        low, high = min(windows, key=lambda w: _variance(losses, slice(*w)))
        return self._between(low / RATE_BUCKETS, high / RATE_BUCKETS)

    def law_words(self) -> str:
        if (self.low, self.high) == (0.0, 1.0):
            return "clipped"
        return f"clipped from {percent(self.low)}-{percent(self.high)} %"

    def _between(self, low: float, high: float) -> Mixture:
        components = [
            {"weight": 1 - self.explore, "policy": {"kind": "uniform", "low": low, "high": high}},
            {"weight": self.explore, "policy": {"kind": "uniform"}},
        ]
        return Mixture.model_validate({"components": components, **self.outer()})


def _variance(losses: LossByRate, window: slice) -> float:
    """Variance of a sequence's mean loss under uniform rates in the window, rounded to decide ties.

    The law of total variance: within tenths, and between their means.
    """
    within = losses.variance[window].mean()
    return round(float(within + np.var(losses.mean[window])), 9)
