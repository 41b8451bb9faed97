"""The score away from home: held-out domains, and values that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from mptune.trial import LMLScore, Message, TrialResult


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


HOME = "home"


@dataclass(frozen=True)
class Scored:
    """A finished trial, or an arm over its seeds."""

    label: str
    results: Sequence[TrialResult]
    trial: int | None = None
    arm: str | None = None


def worst_domain(results: Sequence[TrialResult]) -> tuple[str, float] | None:
    """The domain with the lowest mean score, and that score; None without domains."""
    names = results[0].lml_shift if results else {}
    means = {
        name: math.fsum(r.lml_shift[name].nats_per_token for r in results) / len(results)
        for name in names
    }
    return min(means.items(), key=lambda pair: pair[1]) if means else None


def robustness(scored: Sequence[Scored], by_worst: bool) -> Robustness | None:
    """Every trial and arm under every condition; None where home is the only one."""
    first = next((s.results[0] for s in scored if s.results), None)
    conditions = tuple(_conditions(first)) if first else ()
    if len(conditions) < 2:
        return None
    rows = [_row(s, conditions) for s in scored if s.results]
    known = [r for r in rows if r.trial is not None and r.worst_nats_per_token is not None]
    best = max(known, key=lambda r: r.worst_nats_per_token or -math.inf, default=None)
    return Robustness(
        conditions=conditions,
        rows=tuple(rows),
        chosen_by_worst=by_worst,
        best_at_worst=best.trial if best else None,
    )


def _conditions(result: TrialResult) -> Iterator[Condition]:
    yield Condition(name=HOME, kind="home")
    for name in result.lml_shift:
        yield Condition(name=name, kind="domain")
    for gone in result.lml_missing:
        name = f"{100 * gone.fraction:g} % missing, {gone.kind}"
        yield Condition(name=name, kind="missing", fraction=gone.fraction, pattern=gone.kind)


def _scores(result: TrialResult) -> list[LMLScore]:
    return [result.lml, *result.lml_shift.values(), *(gone.lml for gone in result.lml_missing)]


def _row(scored: Scored, conditions: Sequence[Condition]) -> RobustnessRow:
    by_run = [_scores(result) for result in scored.results]
    complete = [scores for scores in by_run if len(scores) == len(conditions)]
    worst = worst_domain(scored.results)
    return RobustnessRow(
        trial=scored.trial,
        arm=scored.arm,
        label=scored.label,
        scores=tuple(
            _mean(condition.name, list(runs))
            for condition, runs in zip(conditions, zip(*complete, strict=True), strict=True)
        )
        if complete
        else (),
        worst_domain=worst[0] if worst else None,
        worst_nats_per_token=worst[1] if worst else None,
    )


def _mean(name: str, runs: Sequence[LMLScore]) -> ConditionScore:
    """Over seeds: sequences are the same for all of them, seeds vary on top of that."""
    from scipy.special import stdtrit

    values = [run.nats_per_token for run in runs]
    mean = math.fsum(values) / len(values)
    per_token = runs[0].nats_per_token / runs[0].nats_per_sequence
    evaluation = math.fsum(run.se_population for run in runs) / len(runs) * abs(per_token)
    df, seeds = runs[0].sequences - 1, 0.0
    if len(values) > 1:
        spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        df, seeds = len(values) - 1, spread / len(values)
    half = math.hypot(
        float(stdtrit(runs[0].sequences - 1, 0.975)) * evaluation,
        float(stdtrit(df, 0.975)) * math.sqrt(seeds),
    )
    return ConditionScore(
        name=name, nats_per_token=mean, half_width=half, se=math.hypot(evaluation, seeds**0.5)
    )
