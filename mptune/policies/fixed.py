"""The fixed mask rate of BERT and its descendants."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from mptune.policies.base import FloatArray, MaskPolicy, percent
from mptune.spec.schema import MaskRate


class Fixed(MaskPolicy):
    """The same share of positions is masked in every sequence.

    Source: BERT 0.15 (Devlin et al. 2019, arXiv 1810.04805); 0.40 (Wettig et al. 2023, arXiv
    2202.08005); MAE 0.75 (He et al. 2022, arXiv 2111.06377).
    """

    kind: Literal["fixed"] = "fixed"
    rate: MaskRate = Field(description="share of the observed positions masked, in (0, 1]")

    def pmf(self, length: int, progress: float) -> FloatArray:
        """Rounds rate * D up or down at random, so that the mean rate is exact; M is at least 1."""
        # Rounding to 9 digits keeps 0.15 * 20 from being 3 + a rounding error.
        whole, part = divmod(round(max(self.rate * length, 1.0), 9), 1)
        q_M = np.zeros(length)
        q_M[int(whole) - 1] = 1 - part
        if part > 0:
            q_M[int(whole)] = part
        return q_M

    def law_words(self) -> str:
        return f"fixed {percent(self.rate)} %"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(rate=0.15), cls(rate=0.4, corruption="bert"), cls(rate=1.0)]
