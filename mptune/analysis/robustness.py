"""Scores under other conditions than training: held-out domains, and values that are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.trial import LMLScore, TrialResult


@dataclass(frozen=True)
class Condition:
    """One way to score a model.

    Attributes:
        kind: `home` is the distribution that it was trained on.
        domain: name of a held-out domain.
        fraction, pattern: of the observed values, how many were removed and how.
        few_groups: number of groups, if intervals hold for these only; see `LMLScore`.
    """

    kind: Literal["home", "domain", "missing"]
    domain: str = ""
    fraction: float = 0.0
    pattern: Literal["random", "block"] = "random"
    few_groups: int | None = None


def scores_by_condition(runs: Sequence[TrialResult]) -> dict[Condition, tuple[float, float]]:
    """Mean score of the runs of a trial or an arm, and half of its 95 % interval, nats per token.

    Runs of several seeds share their sequences: their spread adds to the noise of those. The root
    of the sum of the two squared half-widths covers 95 to 99 % (docs/method.md).
    """
    scores: dict[Condition, list[LMLScore]] = {}
    for run in runs:
        few = run.lml.few_groups
        scores.setdefault(Condition("home", few_groups=few), []).append(run.lml)
        for name, lml in run.lml_shift.items():
            condition = Condition("domain", name, few_groups=lml.few_groups)
            scores.setdefault(condition, []).append(lml)
        for gone in run.lml_missing:
            condition = Condition("missing", "", gone.fraction, gone.kind, few)
            scores.setdefault(condition, []).append(gone.lml)
    found = {}
    for condition, of_runs in scores.items():
        values = [lml.nats_per_token for lml in of_runs]
        half = math.fsum(map(lml_half_width, of_runs)) / len(of_runs)
        if len(values) > 1:
            sd = float(np.std(values, ddof=1))
            half = math.hypot(half, half_width(sd, len(values) - 1) / math.sqrt(len(values)))
        found[condition] = math.fsum(values) / len(values), half
    return found


def worst_domain(runs: Sequence[TrialResult]) -> tuple[str, float] | None:
    """The domain with the lowest mean score, and that score; None without domains."""
    scores = {c.domain: score for c, (score, _) in scores_by_condition(runs).items() if c.domain}
    return min(scores.items(), key=lambda pair: pair[1], default=None)
