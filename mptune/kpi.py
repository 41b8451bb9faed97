"""A team's own figure of merit against the scores: which one predicts it, and is that certain."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from mptune.trial import Message

Predictor: TypeAlias = Literal["lml", "loss"]


class KpiValue(Message):
    """What the user's function said of one trial."""

    value: float | None = Field(description="None: it failed, see `error`")
    se: float | None = Field(None, description="its standard error, if the function gave one")
    error: str | None = Field(None, description="why it has no value, in one line")
    seconds: float | None = Field(None, description="that the function took")


class Correlation(Message):
    """Rank correlation of a score with the KPI over trials; positive: it predicts the KPI."""

    predictor: Predictor = Field(description="`lml`, or `loss`: minus the loss at 15 %")
    statistic: Literal["spearman", "kendall"]
    value: float | None = Field(description="None where all values are equal")
    low: float | None = Field(description="ends of the 95 % interval; None with too few trials")
    high: float | None


class KpiReport(Message):
    """The KPI over the finished trials."""

    name: str = Field(description="the function, e.g. `mypackage.kpi:downstream`")
    higher_is_better: bool = True
    trials: int = Field(description="trials with a value")
    failed: int = Field(0, description="trials on which the function failed")
    correlations: tuple[Correlation, ...] = ()
    difference: float | None = Field(
        None, description="Kendall's tau of the LML minus that of the loss at 15 %"
    )
    difference_low: float | None = Field(None, description="ends of its 95 % interval")
    difference_high: float | None = None
    better: Predictor | None = Field(None, description="the one with the higher tau, if any")
    certain: bool = Field(False, description="the interval of the difference leaves out zero")
    best_trial: int | None = Field(None, description="number of the trial with the best KPI")
