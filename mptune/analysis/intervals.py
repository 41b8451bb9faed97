"""Half-widths of 95 % intervals: the one place that knows the quantiles."""

from __future__ import annotations

import math

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
    """Half of the 95 % interval of a score over new sequences and masks, in nats per token.

    Trials are scored on the same sequences and masks, so a difference between two of them is more
    certain than their intervals suggest. NaN with fewer than 2 sequences.
    """
    if not lml.nats_per_token or lml.sequences < 2:
        return math.nan
    tokens_per_sequence = lml.nats_per_sequence / lml.nats_per_token
    return half_width(lml.se_population, lml.sequences - 1) / tokens_per_sequence
