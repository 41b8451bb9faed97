"""Scores under other conditions than training: held-out domains, and values that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.trial import LMLScore, Message, Trial, TrialResult


class Condition(Message):
    """One way to score a model."""

    name: str = Field(description="`home`, the domain's name, or e.g. `20 % missing, random`")
    kind: Literal["home", "domain", "missing"]
    fraction: float | None = Field(None, description="of observed values that were removed")
    pattern: Literal["random", "block"] | None = Field(None, description="how they were removed")
    few_groups: int | None = Field(
        None, description="number of groups, if intervals hold for these only; see `LMLScore`"
    )


class ConditionScore(Message):
    """The score under one condition."""

    name: str = Field(description="of the condition")
    nats_per_token: float
    half_width: float = Field(
        description="of its 95 % interval: over held-out data, and training seeds if it has several"
    )


class RobustnessRow(Message):
    """The scores of one finished trial, or of one arm (mean over its seeds)."""

    trial: int | None = Field(None, description="number of the trial; None for an arm")
    arm: str | None = Field(None, description="name of the arm; None for a trial")
    scores: tuple[ConditionScore, ...]
    worst_domain: str | None = Field(None, description="where it scores lowest of all domains")


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
    scored = [(w[1], t.number) for t in ranked if t.result and (w := worst_domain([t.result]))]
    return Robustness(
        conditions=conditions,
        rows=rows,
        chosen_by_worst=by_worst,
        best_at_worst=max(scored, key=lambda pair: pair[0])[1] if scored else None,
    )


def _conditions(result: TrialResult) -> Iterator[Condition]:
    few = result.lml.few_groups
    yield Condition(name=HOME, kind="home", few_groups=few)
    for name, lml in result.lml_shift.items():
        yield Condition(name=name, kind="domain", few_groups=lml.few_groups)
    for gone in result.lml_missing:
        of = {"fraction": gone.fraction, "pattern": gone.kind, "few_groups": few}
        name = f"{100 * gone.fraction:g} % missing, {gone.kind}"
        yield Condition.model_validate({"name": name, "kind": "missing", **of})


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
    )


def _mean(name: str, runs: Sequence[LMLScore]) -> ConditionScore:
    """The mean over seeds, which share their sequences: their spread adds to the noise of those.

    The root of the sum of the two squared half-widths covers 95 to 99 % (docs/method.md).
    """
    values = [run.nats_per_token for run in runs]
    half = math.fsum(lml_half_width(run) for run in runs) / len(runs)
    if len(runs) > 1:
        seeds = half_width(float(np.std(values, ddof=1)), len(runs) - 1) / math.sqrt(len(runs))
        half = math.hypot(half, seeds)
    mean = math.fsum(values) / len(values)
    return ConditionScore(name=name, nats_per_token=mean, half_width=half)
