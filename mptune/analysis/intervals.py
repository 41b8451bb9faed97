"""Half-widths of 95 % intervals; scores by group, and under other conditions than training.

The only module that knows the quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mptune.lml.groups import MIN_GROUPS, group_scores, intraclass_correlation
from mptune.trial import LMLScore, TrialResult

NORMAL_95 = 1.96
"""Normal quantile at 97.5 %, as it is quoted in captions."""


def half_width(se: float, df: float | None = None) -> float:
    """Half of the 95 % interval of an estimate with standard error `se`, in the unit of `se`.

    Student's with `df` degrees of freedom, else normal.
    """
    if df is None:
        return NORMAL_95 * se
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975)) * se


def lml_half_width(lml: LMLScore) -> float:
    """Half of the 95 % interval of a score, in nats per token; NaN where it is not known.

    It is over new groups of sequences and new masks; with few groups, over new masks only (see
    `LMLScore.scope`). Trials are scored on the same sequences and masks, so a difference between
    two of them is more certain than their intervals suggest.
    """
    return half_width(*lml.error)


def by_group(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """A trial's stored scores with one value per group [G] in place of its n sequences.

    Groups are independent, where sequences of one are not. With fewer than `MIN_GROUPS` nothing is
    claimed of other groups, and the values stay those of the sequences.

    Args:
        scores: `nats_per_sequence` [n], `groups` [n] and `at_rungs` [rungs, m], whose sequences
            are the first m; or nothing.
    """
    if not scores:
        return {}
    groups_n = scores["groups"]
    few = len(np.unique(groups_n)) < MIN_GROUPS
    return {
        name: z if few or not z.size else group_scores(z, groups_n[: z.shape[-1]])
        for name in ("nats_per_sequence", "at_rungs")
        if (z := scores.get(name)) is not None
    }


def group_correlations(scores: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, float]:
    """How alike sequences of one group are: intraclass correlations, NaN where there are none.

    Of the first trial's stored scores (`score`), and of the difference between the first two
    (`difference`), which decides between them.
    """
    z = [s["nats_per_sequence"] for s in scores]
    of = {"score": z[0], "difference": z[0] - z[1]} if len(z) > 1 else {"score": z[0]}
    return {name: intraclass_correlation(v, scores[0]["groups"]) for name, v in of.items()}


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


Rule: TypeAlias = str | Mapping[str, float]
"""`search.choose_by`: heldout, worst_domain, or the weights of domains and of heldout."""


def scores_by_name(runs: Sequence[TrialResult]) -> dict[str, float]:
    """Mean score of the runs on `heldout` and on each domain, nats per token."""
    found = scores_by_condition(runs)
    return {c.domain or "heldout": score for c, (score, _) in found.items() if c.kind != "missing"}


def score_by_rule(runs: Sequence[TrialResult], rule: Rule) -> float | None:
    """The score that a rule compares, nats per token; with weights their weighted mean.

    None: the rule is heldout, or the runs were not scored on what it names.
    """
    if isinstance(rule, str):
        worst = worst_domain(runs) if rule == "worst_domain" else None
        return worst and worst[1]
    scores = scores_by_name(runs)
    if not rule.keys() <= scores.keys():
        return None
    weighted = math.fsum(weight * scores[name] for name, weight in rule.items())
    return weighted / math.fsum(rule.values())


def worst_domain(runs: Sequence[TrialResult]) -> tuple[str, float] | None:
    """The domain with the lowest mean score, and that score; None without domains."""
    scores = {c.domain: score for c, (score, _) in scores_by_condition(runs).items() if c.domain}
    return min(scores.items(), key=lambda pair: pair[1], default=None)
