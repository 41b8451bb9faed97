"""`Report`: the results of one study as plain values, and the ranking of its trials.

A `Report` survives `model_dump_json` and `model_validate_json`. The views (HTML, Markdown, JSON,
terminal) read nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from mptune.analysis import Difference, Selection
from mptune.analysis.compute import EquivalentCompute
from mptune.analysis.kpi import KpiReport
from mptune.analysis.robustness import Robustness
from mptune.analysis.selection import SearchSelection
from mptune.analysis.sizes import BySize
from mptune.trial import LearningPoint, LMLScore, Message, Prepared, Trial, TrialResult

SCHEMA_VERSION = 2
"""Of report.json; raised when a key changes its meaning or goes away."""


class ArmRun(Message):
    """One training seed of an arm."""

    seed: int
    result: TrialResult


class ArmRow(Message):
    """One arm of the comparison, over its seeds."""

    name: str
    policy: dict[str, Any] = Field(default_factory=dict)
    policy_label: str = ""
    size_label: str = ""
    runs: tuple[ArmRun, ...] = ()
    failures: int = Field(0, description="runs that ended without a result")
    learning: tuple[LearningPoint, ...] = Field(
        (), description="mean over seeds, the end included; its se carries both noises"
    )


class ComparisonReport(Message):
    """Named arms over paired seeds, and what comparing them said."""

    baseline: str
    level: float = 0.95
    arms: tuple[ArmRow, ...]
    differences: tuple[Difference, ...] = Field(
        (), description="each other arm against the baseline; empty while a pair is missing"
    )
    selection: tuple[Selection, ...] = ()
    compute: tuple[EquivalentCompute, ...] = Field(
        (), description="baseline and challengers, both ways, in every unit; empty without rungs"
    )


class TotalSpend(Message):
    """What the whole study took, its comparison included."""

    trials: int = Field(0, description="runs that were trained, whatever became of them")
    tokens: int = Field(0, description="positions processed in training")
    flops: float = 0.0
    worker_s: float = Field(0.0, description="seconds of work, times the workers of each trial")
    wall_s: float | None = Field(None, description="seconds from first start to last end")


class Importance(Message):
    """How much of the score one dimension of the search decides."""

    name: str = Field(description="the dimension, e.g. `policy.0.rate`")
    share: float = Field(description="of all dimensions that were judged; they sum to 1")
    trials: int = Field(description="finished trials that it rests on")


class Report(Message):
    """Everything that a report shows."""

    study: str
    data: str = Field(description="the data in one line of words")
    prepared: Prepared | None = None
    trials: tuple[Trial, ...] = ()
    comparison: ComparisonReport | None = None
    selection: SearchSelection | None = Field(None, description="the choice of the whole search")
    by_size: BySize | None = Field(None, description="None with fewer than two sizes")
    robustness: Robustness | None = Field(
        None, description="None without domains and without score.missing"
    )
    kpi: KpiReport | None = Field(None, description="None without score.kpi")
    importance: tuple[Importance, ...] = Field(
        (), description="by share, largest first; empty with too few trials"
    )
    spend: TotalSpend = TotalSpend()
    plan_hash: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    commands: tuple[str, ...] = Field((), description="what replays the study")
    created: str = Field("", description="time of the report, ISO 8601")


@dataclass(frozen=True)
class Outcomes:
    """How the trials of the search ended, or the runs of the arms where nothing was searched."""

    all: int
    finished: int
    failed: int
    pruned: int

    @classmethod
    def of(cls, report: Report) -> Outcomes:
        """Counted from the report."""
        if report.trials:
            states = [t.state for t in report.trials]
            finished = sum(t.finished for t in report.trials)
            return cls(len(states), finished, states.count("FAIL"), states.count("PRUNED"))
        arms = report.comparison.arms if report.comparison else ()
        finished, failed = sum(len(arm.runs) for arm in arms), sum(arm.failures for arm in arms)
        return cls(finished + failed, finished, failed, 0)


def spend(
    results: Iterable[TrialResult], *, trials: int | None = None, wall_s: float | None = None
) -> TotalSpend:
    """Sum of what these results cost; `trials` counts also those that left no result."""
    costs = [result.cost for result in results]
    return TotalSpend(
        trials=len(costs) if trials is None else trials,
        tokens=sum(cost.tokens for cost in costs),
        flops=sum(cost.flops for cost in costs),
        worker_s=sum(cost.total_s * cost.workers for cost in costs),
        wall_s=wall_s,
    )


@dataclass(frozen=True)
class Ranked:
    """A finished trial in its place.

    Attributes:
        place: 1 is the best.
        nats_per_token: its LML estimate.
        half_width: of the 95 % interval over new held-out sequences and masks, nats per token.
            Trials are scored on the same sequences and masks, so that a difference between two
            is more certain than their intervals suggest.
    """

    place: int
    trial: Trial
    result: TrialResult
    nats_per_token: float
    half_width: float

    @property
    def bits_per_byte(self) -> float | None:
        return self.result.lml.bits_per_byte

    @property
    def parameters(self) -> int:
        return self.trial.parameters or self.result.cost.parameters


def half_width(lml: LMLScore) -> float:
    """Half of the 95 % interval over the population of sequences, in nats per token."""
    from scipy.special import stdtrit

    if not lml.nats_per_token or lml.sequences < 2:
        return math.nan
    tokens_per_sequence = lml.nats_per_sequence / lml.nats_per_token
    return float(stdtrit(lml.sequences - 1, 0.975)) * lml.se_population / tokens_per_sequence


def ranking(trials: Sequence[Trial]) -> list[Ranked]:
    """Finished trials by LML in nats per token, best first; the same point counts once."""
    first: dict[str, tuple[Trial, TrialResult]] = {}
    for trial in trials:
        if trial.finished and trial.result is not None:
            first.setdefault(trial.result.fingerprint, (trial, trial.result))
    rows = list(first.values())
    rows.sort(key=lambda row: (-row[1].lml.nats_per_token, row[0].number))
    return [
        Ranked(place, trial, result, result.lml.nats_per_token, half_width(result.lml))
        for place, (trial, result) in enumerate(rows, start=1)
    ]


@dataclass(frozen=True)
class Shift:
    """One trial on one held-out distribution.

    Attributes:
        nats_per_token: its LML estimate there, and the half-width of its 95 % interval.
        drop: how much lower that is than at home; its half-width takes the two as independent.
    """

    domain: str
    nats_per_token: float
    half_width: float
    drop: float
    drop_half_width: float


def shifts(row: Ranked) -> list[Shift]:
    """A trial on every domain, in the spec's order."""
    found = []
    for name, lml in row.result.lml_shift.items():
        half = half_width(lml)
        found.append(
            Shift(
                domain=name,
                nats_per_token=lml.nats_per_token,
                half_width=half,
                drop=row.nats_per_token - lml.nats_per_token,
                drop_half_width=math.hypot(half, row.half_width),
            )
        )
    return found


def policy_kind(trial: Trial | ArmRow) -> str:
    """What trials are grouped by: the kind of policy, with fixed 15 % a kind of its own."""
    if is_fixed_15(trial.policy):
        return "fixed 15 %"
    return str(trial.policy.get("kind", trial.policy_label))


def best_per_policy(ranked: Sequence[Ranked]) -> list[Ranked]:
    """The best trial of each kind of policy, best first."""
    best: dict[str, Ranked] = {}
    for row in ranked:
        best.setdefault(policy_kind(row.trial), row)
    return list(best.values())


def loss_at(result: TrialResult, rate: float) -> float | None:
    """Loss at one mask rate in nats per masked position, or None if it was not recorded."""
    return next((r.loss for r in result.rates if math.isclose(r.rate, rate)), None)


def accuracy_at(result: TrialResult, rate: float) -> float | None:
    """Share of masked positions predicted exactly at one mask rate, if it was recorded."""
    return next((r.accuracy for r in result.rates if math.isclose(r.rate, rate)), None)


def is_fixed_15(policy: dict[str, Any]) -> bool:
    """The habit that the study questions: a fixed rate of 15 %."""
    return policy.get("kind") == "fixed" and math.isclose(float(policy.get("rate", 0)), 0.15)


def is_accumulated(policy: dict[str, Any]) -> bool:
    """Training on the LML itself: uniform counts, every count with the same total weight."""
    return (
        policy.get("kind") == "uniform"
        and (policy.get("low", 0.0), policy.get("high", 1.0)) == (0.0, 1.0)
        and policy.get("reduction") != "token_mean"
    )
