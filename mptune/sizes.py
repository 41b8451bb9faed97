"""Laws over model size and budget: the best mask rate, and the gap in LML, with intervals."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mptune.trial import Message


class LawParameter(Message):
    """One parameter of a law."""

    name: str
    value: float
    low: float = Field(description="ends of its 95 % bootstrap interval")
    high: float


class SizePoint(Message):
    """What the law is fitted to, at one size."""

    parameters: int = Field(description="of the model")
    tokens: float = Field(description="budget behind it, positions")
    value: float = Field(description="best rate as a fraction, or gap in nats per token")
    low: float | None = Field(None, description="ends of its 95 % interval, where there is one")
    high: float | None = None
    runs: int = Field(1, description="training runs behind it")


class LawValue(Message):
    """The law at one size and budget, with its 95 % bootstrap interval."""

    parameters: float
    tokens: float
    value: float
    low: float
    high: float


class Extrapolation(Message):
    """The law at a size that the user names."""

    at: LawValue
    beyond: float = Field(
        description="how far outside the sizes that were run, as a factor; 1 is inside"
    )


class SizeLaw(Message):
    """A law with few parameters, and what it was fitted to."""

    what: Literal["best rate", "gap"]
    of: str = Field(description="in words, e.g. `fixed` or `accumulated - fixed 15 %`")
    form: str = Field(description="the law as a formula")
    parameters: tuple[LawParameter, ...]
    points: tuple[SizePoint, ...]
    curves: tuple[tuple[LawValue, ...], ...] = Field(
        description="over a grid of sizes, one curve for each budget, the largest budget last"
    )
    extrapolation: tuple[Extrapolation, ...] = ()
    runs: int = Field(description="training runs that it rests on")
    size_matters: bool = Field(
        description="the interval of the slope over size leaves out zero: more than a constant"
    )


class BySize(Message):
    """The laws of a study over several sizes; one that cannot be fitted says why not."""

    best_rate: SizeLaw | None = None
    gap: SizeLaw | None = None
    best_rate_missing: str = Field("", description="why there is no law of the best rate")
    gap_missing: str = Field("", description="why there is no law of the gap")
