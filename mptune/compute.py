"""Equivalent compute: what share of one arm's cost another needs to reach its score."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from mptune.trial import Message

Unit: TypeAlias = Literal["tokens", "flops", "seconds"]

UNITS: tuple[Unit, ...] = ("tokens", "flops", "seconds")

Reading: TypeAlias = Literal["reached", "before the first rung", "not reached"]


class EquivalentCompute(Message):
    """`arm` reaches the final LML of `reaches` with `factor` of what `reaches` spent.

    Every ordered pair of the baseline and a challenger has one for each unit, so that a report can
    say it of whichever arm is ahead.
    """

    arm: str = Field(description="whose learning curve is read")
    reaches: str = Field(description="whose final LML is the level")
    unit: Unit
    level: float = Field(description="that LML, nats per token, on the plan of the rungs")
    factor: float | None = Field(
        description="cost of `arm` at the level over the whole cost of `reaches`; before the first "
        "rung: at most this; None: not reached with all that `arm` spent"
    )
    low: float | None = Field(description="end of the interval; None: before the first rung")
    high: float | None = Field(description="end of the interval; None: not reached")
    confidence: float = Field(0.95, description="of the interval, which carries both noises")
    reading: Reading
    spent: float = Field(description="whole cost of `arm` over that of `reaches`")
    probability_reached: float = Field(description="that `arm` reaches the level at all")
    seeds: int = Field(description="paired seeds that both curves are means of")
