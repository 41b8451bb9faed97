"""Normally distributed mask rates, truncated."""

from __future__ import annotations

from math import erf, sqrt
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mptune.policies.base import FloatArray, RatePolicy, percent, short
from mptune.spec.schema import Fraction, MaskRate


class TruncatedNormal(RatePolicy):
    """The mask rate is normal with the given mean and spread, truncated to [low, high].

    Source: MAGE (Li et al. 2023, arXiv 2211.09117): mean .55, std .25 on [.5, 1], the defaults.
    """

    kind: Literal["truncated_normal"] = "truncated_normal"
    mean: Fraction = Field(0.55, description="mean before truncation, a rate in [0, 1]")
    std: float = Field(0.25, gt=0, description="spread before truncation, as a rate, above 0")
    low: float = Field(0.5, ge=0, lt=1, description="lowest mask rate, in [0, 1)")
    high: MaskRate = Field(1.0, description="highest mask rate, in (0, 1], above low")

    @model_validator(mode="after")
    def _has_mass(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        # Less mass than this, and differences of the normal cdf lose their digits.
        if self._below(self.high) - self._below(self.low) < 1e-6:
            raise ValueError(
                f"normal({self.mean}, {self.std}) has no mass in [{self.low}, {self.high}]; "
                "move the mean or widen std"
            )
        return self

    def _below(self, rate: float) -> float:
        return 0.5 * (1 + erf((rate - self.mean) / (self.std * sqrt(2))))

    def cdf(self, rates: FloatArray) -> FloatArray:
        from scipy.special import ndtr

        inside = np.clip(rates, self.low, self.high)
        low, high = self._below(self.low), self._below(self.high)
        return np.asarray((ndtr((inside - self.mean) / self.std) - low) / (high - low))

    def law_words(self) -> str:
        bounds = f"{percent(self.low)}-{percent(self.high)} %"
        return f"normal({short(self.mean)}, {short(self.std)}) in {bounds}"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(mean=0.2, std=0.05, low=0.0, high=0.5, reduction="token_mean")]
