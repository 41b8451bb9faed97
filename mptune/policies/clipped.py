"""Clipped uniform mask rates whose bounds are chosen again during training."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mptune.policies.base import RATE_BUCKETS, FloatArray, LossByRate, MaskPolicy, percent
from mptune.policies.mixture import Mixture
from mptune.spec.schema import MaskRate


class Clipped(MaskPolicy):
    """The mask rate is uniform between bounds that give the training loss the least variance.

    Every `every` of progress the bounds are chosen again among tenths, at least `narrowest`
    apart: those of the least variance of a sequence's mean loss, within rates and between them.
    A share `explore` of the sequences draws from all rates, so that all bounds can be judged.

    Source: the data-driven clipped schedules of BD3LM (Arriola et al. 2025, arXiv 2503.09573).
    """

    kind: Literal["clipped"] = "clipped"
    low: float = Field(0.0, ge=0, lt=1, description="lowest mask rate at first, in [0, 1)")
    high: MaskRate = Field(1.0, description="highest mask rate at first, in (0, 1], above low")
    narrowest: MaskRate = Field(0.5, description="least distance of the bounds, in (0, 1]")
    every: float = Field(0.05, gt=0, le=1, description="progress between choices, in (0, 1]")
    explore: float = Field(0.1, gt=0, lt=1, description="share over all rates, in (0, 1)")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self

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
        return Mixture.model_validate(
            {
                "components": components,
                "reduction": self.reduction,
                "corruption": self.corruption,
                "structure": self.structure,
            }
        )

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(low=0.3, high=0.8, reduction="elbo")]


def _variance(losses: LossByRate, window: slice) -> float:
    """Variance of a sequence's mean loss under uniform rates in the window, rounded to decide ties.

    The law of total variance: within tenths, and between their means.
    """
    within = losses.variance[window].mean()
    return round(float(within + np.var(losses.mean[window])), 9)
