"""The cosine law of mask rates."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np

from mptune.policies.base import FloatArray, RatePolicy


class Cosine(RatePolicy):
    """The mask rate is r = cos(pi u / 2) with u uniform: mostly high rates, mean 2/pi.

    Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200), the cosine mask scheduling function.
    """

    kind: Literal["cosine"] = "cosine"

    def cdf(self, rates: FloatArray) -> FloatArray:
        return 1 - np.arccos(rates) * 2 / np.pi

    def law_words(self) -> str:
        return "cosine"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(), cls(reduction="elbo", corruption="bert")]
