"""Beta-distributed mask rates."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from mptune.policies.base import FloatArray, RatePolicy, short


class Beta(RatePolicy):
    """The mask rate is drawn from Beta(a, b), of mean a / (a + b); (1, 1) is uniform.

    Source: ESM-3 mixes Beta(3, 9) with a uniform rate (Hayes et al. 2025, Science,
    doi:10.1126/science.ads0018): see `mixture`.
    """

    kind: Literal["beta"] = "beta"
    a: float = Field(gt=0, le=1000, description="weight of high rates, in (0, 1000]")
    b: float = Field(gt=0, le=1000, description="weight of low rates, in (0, 1000]")

    def cdf(self, rates: FloatArray) -> FloatArray:
        from scipy.special import betainc

        return np.asarray(betainc(self.a, self.b, rates))

    def law_words(self) -> str:
        return f"beta({short(self.a)}, {short(self.b)})"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(a=2, b=5), cls(a=0.5, b=0.5, reduction="elbo"), cls(a=300, b=300)]
