"""Half-widths of 95 % intervals, the one place that knows the quantiles; and scores by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mptune.lml import MIN_GROUPS, group_scores, intraclass_correlation
from mptune.trial import LMLScore

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
