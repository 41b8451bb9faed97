"""Uniform mask counts: accumulated masked pre-training."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mptune.policies.base import FloatArray, RatePolicy, percent
from mptune.spec.schema import MaskRate


class Uniform(RatePolicy):
    """Every mask count is as likely: M ~ U{1..D}, or r ~ U(low, high) when capped.

    Source: Moreno-Munoz et al. 2023, arXiv 2306.00520 (accumulated masked pre-training); OA-ARDM,
    arXiv 2110.02037; capped as PMLM, arXiv 2004.11579, and BD3LM, arXiv 2503.09573.
    """

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, lt=1, description="lowest mask rate, in [0, 1)")
    high: MaskRate = Field(1.0, description="highest mask rate, in (0, 1], above low")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self

    def cdf(self, rates: FloatArray) -> FloatArray:
        return np.clip((rates - self.low) / (self.high - self.low), 0.0, 1.0)

    def law_words(self) -> str:
        if (self.low, self.high) != (0.0, 1.0):
            return f"uniform {percent(self.low)}-{percent(self.high)} %"
        return "uniform" if self.reduction == "token_mean" else "uniform (accumulated)"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(reduction="elbo"), cls(low=0.1, high=0.5, reduction="token_mean")]
