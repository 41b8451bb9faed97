"""A law of the mask rate that is learned during training from the spread of the loss."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from mptune.policies.base import FloatArray, LossByRate, MaskPolicy, RatePolicy, percent
from mptune.policies.histogram import Histogram


class Adaptive(RatePolicy):
    """Rates are drawn in proportion to the spread of the loss there, learned in training.

    It begins uniform. Every `every` of progress, each tenth of the rates gets the standard
    deviation of the sequences' mean losses in it as its weight, which is the allocation of draws
    with the least variance (Neyman 1934); a share `explore` stays uniform, so that every rate
    is still measured. With `reduction: elbo` the objective stays the accumulated one.

    Source: P-POTS, arXiv 2511.18159; here by tenths of the mask rate.
    """

    kind: Literal["adaptive"] = "adaptive"
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
        return Histogram(
            bins=bins,
            reduction=self.reduction,
            corruption=self.corruption,
            structure=self.structure,
        )

    def law_words(self) -> str:
        return f"adaptive, {percent(self.explore)} % uniform"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(explore=0.5, reduction="elbo", corruption="swap")]
