"""A law of the mask rate given by a histogram."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field

from mptune.policies.base import FloatArray, RatePolicy, percent


def _has_mass(bins: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(bins) > 0:
        raise ValueError("has no weight above 0")
    return bins


Bins = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_has_mass)
]


class Histogram(RatePolicy):
    """The mask rate falls into one of n equal intervals of (0, 1], uniform inside each.

    Source: inverse-transform sampling of a tabulated law; what `adaptive` learns is one.
    """

    kind: Literal["histogram"] = "histogram"
    bins: Bins = Field(description="weight of each interval, from low to high rates, >= 0")

    def cdf(self, rates: FloatArray) -> FloatArray:
        below = np.concatenate([[0.0], np.cumsum(self.bins)]) / sum(self.bins)
        return np.interp(rates, np.linspace(0, 1, len(below)), below)

    def law_words(self) -> str:
        mean = float(np.dot(self.bins, np.arange(0.5, len(self.bins)) / len(self.bins)))
        return f"histogram, mean {percent(mean / sum(self.bins))} %"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(bins=(1, 0, 2, 3)), cls(bins=(1, 2), reduction="elbo")]
