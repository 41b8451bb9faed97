"""Laws of the mask rate that do not change in training."""

from __future__ import annotations

from math import erf, sqrt
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mptune.policies.base import FloatArray, MaskPolicy, RatePolicy, percent, short
from mptune.spec.schema import Fraction, MaskRate


class Fixed(MaskPolicy):
    """The same share of positions is masked in every sequence.

    Source: BERT 0.15 (Devlin et al. 2019, arXiv 1810.04805); 0.40 (Wettig et al. 2023, arXiv
    2202.08005); MAE 0.75 (He et al. 2022, arXiv 2111.06377).
    """

    kind: Literal["fixed"] = "fixed"
    EXAMPLES = ({"rate": 0.15}, {"rate": 0.4, "corruption": "bert"}, {"rate": 1.0})
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


class Bounded(MaskPolicy):
    """A policy with a lowest and a highest mask rate."""

    low: float = Field(0.0, ge=0, lt=1, description="lowest mask rate, in [0, 1)")
    high: MaskRate = Field(1.0, description="highest mask rate, in (0, 1], above low")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Uniform(Bounded, RatePolicy):
    """Every mask count is as likely: M ~ U{1..D}, or r ~ U(low, high) when capped.

    Source: Moreno-Munoz et al. 2023, arXiv 2306.00520 (accumulated masked pre-training); OA-ARDM,
    arXiv 2110.02037; capped as PMLM, arXiv 2004.11579, and BD3LM, arXiv 2503.09573.
    """

    kind: Literal["uniform"] = "uniform"
    EXAMPLES = ({}, {"reduction": "elbo"}, {"low": 0.1, "high": 0.5, "reduction": "token_mean"})

    def cdf(self, rates: FloatArray) -> FloatArray:
        return np.clip((rates - self.low) / (self.high - self.low), 0.0, 1.0)

    def law_words(self) -> str:
        if (self.low, self.high) != (0.0, 1.0):
            return f"uniform {percent(self.low)}-{percent(self.high)} %"
        return "uniform" if self.reduction == "token_mean" else "uniform (accumulated)"


class Beta(RatePolicy):
    """The mask rate is drawn from Beta(a, b), of mean a / (a + b); (1, 1) is uniform.

    Source: ESM-3 mixes Beta(3, 9) with a uniform rate (Hayes et al. 2025, Science,
    doi:10.1126/science.ads0018): see `mixture`.
    """

    kind: Literal["beta"] = "beta"
    EXAMPLES = ({"a": 2, "b": 5}, {"a": 0.5, "b": 0.5, "reduction": "elbo"}, {"a": 300, "b": 300})
    a: float = Field(gt=0, le=1000, description="weight of high rates, in (0, 1000]")
    b: float = Field(gt=0, le=1000, description="weight of low rates, in (0, 1000]")

    def cdf(self, rates: FloatArray) -> FloatArray:
        from scipy.special import betainc

        return np.asarray(betainc(self.a, self.b, rates))

    def law_words(self) -> str:
        return f"beta({short(self.a)}, {short(self.b)})"


class Power(RatePolicy):
    """The mask rate is 1 - u^k (high rates for k > 1) or u^k (low rates), u uniform.

    Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200) with 1 - u^2 and 1 - u^3; MD4 (Shi et
    al. 2024, arXiv 2406.04329) with u^k.
    """

    kind: Literal["power"] = "power"
    EXAMPLES = (
        {"exponent": 2},
        {"exponent": 3, "form": "u^k"},
        {"exponent": 0.5, "reduction": "elbo"},
    )
    exponent: float = Field(gt=0, le=100, description="k, in (0, 100]; 1 is uniform")
    form: Literal["1-u^k", "u^k"] = Field("1-u^k", description="the rate as a function of u")

    def cdf(self, rates: FloatArray) -> FloatArray:
        if self.form == "u^k":
            return rates ** (1 / self.exponent)
        return 1 - (1 - rates) ** (1 / self.exponent)

    def law_words(self) -> str:
        return f"power {self.form.replace('k', short(self.exponent))}"


class Cosine(RatePolicy):
    """The mask rate is r = cos(pi u / 2) with u uniform: mostly high rates, mean 2/pi.

    Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200), the cosine mask scheduling function.
    """

    kind: Literal["cosine"] = "cosine"
    EXAMPLES = ({}, {"reduction": "elbo", "corruption": "bert"})

    def cdf(self, rates: FloatArray) -> FloatArray:
        return 1 - np.arccos(rates) * 2 / np.pi

    def law_words(self) -> str:
        return "cosine"


class TruncatedNormal(Bounded, RatePolicy):
    """The mask rate is normal with the given mean and spread, truncated to [low, high].

    Source: MAGE (Li et al. 2023, arXiv 2211.09117): mean .55, std .25 on [.5, 1], the defaults.
    """

    kind: Literal["truncated_normal"] = "truncated_normal"
    EXAMPLES = ({}, {"mean": 0.2, "std": 0.05, "low": 0, "high": 0.5, "reduction": "token_mean"})
    mean: Fraction = Field(0.55, description="mean before truncation, a rate in [0, 1]")
    std: float = Field(0.25, gt=0, description="spread before truncation, as a rate, above 0")
    low: float = Field(0.5, ge=0, lt=1, description="lowest mask rate, in [0, 1)")

    @model_validator(mode="after")
    def _has_mass(self) -> Self:
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
    EXAMPLES = ({"bins": (1, 0, 2, 3)}, {"bins": (1, 2), "reduction": "elbo"})
    bins: Bins = Field(description="weight of each interval, from low to high rates, >= 0")

    def cdf(self, rates: FloatArray) -> FloatArray:
        below = np.concatenate([[0.0], np.cumsum(self.bins)]) / sum(self.bins)
        return np.interp(rates, np.linspace(0, 1, len(below)), below)

    def law_words(self) -> str:
        mean = float(np.dot(self.bins, np.arange(0.5, len(self.bins)) / len(self.bins)))
        return f"histogram, mean {percent(mean / sum(self.bins))} %"
