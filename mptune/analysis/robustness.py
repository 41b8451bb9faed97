"""Scores under other conditions than training: held-out domains, and values that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from mptune.analysis.intervals import half_width
from mptune.trial import LMLScore, Message, Trial, TrialResult


class Condition(Message):
    """One way to score a model."""

    name: str = Field(description="`home`, the domain's name, or e.g. `20 % missing, random`")
    kind: Literal["home", "domain", "missing"]
    fraction: float | None = Field(None, description="of observed values that were removed")
    pattern: Literal["random", "block"] | None = Field(None, description="how they were removed")


class ConditionScore(Message):
    """The score under one condition."""

    name: str = Field(description="of the condition")
    nats_per_token: float
    half_width: float = Field(description="of its 95 % interval")
    se: float = Field(description="standard error, nats per token")


class RobustnessRow(Message):
    """The scores of one finished trial, or of one arm (mean over its seeds)."""

    trial: int | None = Field(None, description="number of the trial; None for an arm")
    arm: str | None = Field(None, description="name of the arm; None for a trial")
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


def worst_domain(results: Sequence[TrialResult]) -> tuple[str, float] | None:
    """The domain with the lowest mean score, and that score; None without domains."""
    names = results[0].lml_shift if results else {}
    means = {
        name: math.fsum(r.lml_shift[name].nats_per_token for r in results) / len(results)
        for name in names
    }
    return min(means.items(), key=lambda pair: pair[1]) if means else None


def robustness(
    ranked: Sequence[Trial], arms: Mapping[str, Sequence[Trial]], by_worst: bool
) -> Robustness | None:
    """Every trial and every arm under every condition; None where home is the only one.

    Args:
        ranked: finished trials of the search, best first.
        arms: the trials of each arm, by name.
        by_worst: whether the search chooses by the worst domain.
    """
    named: list[tuple[int | None, str | None, Sequence[Trial]]] = [
        *((trial.number, None, [trial]) for trial in ranked),
        *((None, name, trials) for name, trials in arms.items()),
    ]
    by_name = [
        (number, name, results)
        for number, name, trials in named
        if (results := [trial.result for trial in trials if trial.result is not None])
    ]
    conditions = tuple(_conditions(by_name[0][2][0])) if by_name else ()
    if len(conditions) < 2:
        return None
    rows = tuple(_row(number, name, results, conditions) for number, name, results in by_name)
    known = [r for r in rows if r.trial is not None and r.worst_nats_per_token is not None]
    best = max(known, key=lambda r: r.worst_nats_per_token or -math.inf, default=None)
    return Robustness(
        conditions=conditions,
        rows=rows,
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


def _row(
    trial: int | None,
    arm: str | None,
    results: Sequence[TrialResult],
    conditions: Sequence[Condition],
) -> RobustnessRow:
    by_run = [
        [r.lml, *r.lml_shift.values(), *(gone.lml for gone in r.lml_missing)] for r in results
    ]
    complete = [scores for scores in by_run if len(scores) == len(conditions)]
    by_condition = list(zip(*complete, strict=True))
    worst = worst_domain(results)
    return RobustnessRow(
        trial=trial,
        arm=arm,
        # Empty where no run was scored under every condition.
        scores=tuple(_mean(c.name, s) for c, s in zip(conditions, by_condition, strict=False)),
        worst_domain=worst[0] if worst else None,
        worst_nats_per_token=worst[1] if worst else None,
    )


def _mean(name: str, runs: Sequence[LMLScore]) -> ConditionScore:
    """The mean over seeds; they share their sequences, so seeds add to the noise of those."""
    values = [run.nats_per_token for run in runs]
    mean = math.fsum(values) / len(values)
    per_token = runs[0].nats_per_token / runs[0].nats_per_sequence
    evaluation = math.fsum(run.se_population for run in runs) / len(runs) * abs(per_token)
    half, seeds = half_width(evaluation, runs[0].sequences - 1), 0.0
    if len(values) > 1:
        spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        seeds = spread / len(values)
        half = math.hypot(half, half_width(math.sqrt(seeds), len(values) - 1))
    return ConditionScore(
        name=name, nats_per_token=mean, half_width=half, se=math.hypot(evaluation, seeds**0.5)
    )
