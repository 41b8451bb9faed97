"""Power laws of mask rates."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mptune.policies.base import FloatArray, RatePolicy, short


class Power(RatePolicy):
    """The mask rate is 1 - u^k (high rates for k > 1) or u^k (low rates), u uniform.

    Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200) with 1 - u^2 and 1 - u^3; MD4 (Shi et
    al. 2024, arXiv 2406.04329) with u^k.
    """

    kind: Literal["power"] = "power"
    exponent: float = Field(gt=0, le=100, description="k, in (0, 100]; 1 is uniform")
    form: Literal["1-u^k", "u^k"] = Field("1-u^k", description="the rate as a function of u")

    def cdf(self, rates: FloatArray) -> FloatArray:
        if self.form == "u^k":
            return rates ** (1 / self.exponent)
        return 1 - (1 - rates) ** (1 / self.exponent)

    def law_words(self) -> str:
        return f"power {self.form.replace('k', short(self.exponent))}"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(exponent=2), cls(exponent=3, form="u^k"), cls(exponent=0.5, reduction="elbo")]
