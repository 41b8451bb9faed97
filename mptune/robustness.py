"""The score away from home: held-out domains, and values that are missing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mptune.trial import Message


class Condition(Message):
    """One way to score a model."""

    name: str = Field(description="`home`, the domain's name, or e.g. `20 % missing, random`")
    kind: Literal["home", "domain", "missing"]
    fraction: float | None = Field(None, description="of observed values that were removed")
    pattern: Literal["random", "block"] | None = Field(None, description="how they were removed")


class ConditionScore(Message):
    """One trial under one condition."""

    name: str = Field(description="of the condition")
    nats_per_token: float
    half_width: float = Field(description="of its 95 % interval")
    se: float = Field(description="standard error, nats per token")


class RobustnessRow(Message):
    """One finished trial, or one arm (mean over its seeds), under every condition."""

    trial: int | None = Field(None, description="its number, or None of an arm")
    arm: str | None = Field(None, description="its name, or None of a trial")
    label: str
    scores: tuple[ConditionScore, ...]
    worst_domain: str | None = Field(None, description="where it scores lowest of all domains")
    worst_nats_per_token: float | None = Field(None, description="its score there")


class Robustness(Message):
    """Every trial and arm under every condition."""

    conditions: tuple[Condition, ...]
    rows: tuple[RobustnessRow, ...] = Field(description="trials by score at home, then arms")
    chosen_by_worst: bool = Field(
        False, description="the trial is chosen by its worst domain (search.choose_by)"
    )
    best_at_worst: int | None = Field(
        None, description="number of the trial whose worst domain is best; None without domains"
    )
