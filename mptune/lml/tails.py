"""Heavy tails: whether a mean over sequences has seen enough of them for its standard error.

A standard error is one of the values that were seen. Where one sequence in hundreds decides the
mean, most samples lack it or have one too many, and an interval of Student's t covers too little.
Of G values v (one per group of sequences, see `mptune.lml.groups.group_scores`):

    share   max_g (v_g - mean)^2 / sum_g (v_g - mean)^2        of the largest contribution
    G_1     mean (v - mean)^3 / (mean (v - mean)^2)^{3/2}      the skewness
    needed  40 G_1^2 values. With 25 G_1^2 a single 95 % interval misses at most 6 % (Cochran,
            Sampling Techniques, 3rd ed. 1977, section 2.15); a race looks often, and needs more

Where one of G values makes up all of the spread, G_1^2 is about G: needed exceeds G at any G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mptune.lml.groups import group_scores

PER_SQUARED_SKEWNESS = 40.0
"""Values that a mean needs per squared skewness."""

ROUNDING = 1e-9
"""Values that differ by less than this share of their size count as equal."""


@dataclass(frozen=True, kw_only=True)
class Tails:
    """How far a mean depends on few of its values."""

    count: int
    """Values: groups, or sequences where each is its own group."""
    largest: int
    """Which of the values is farthest from the mean, as an index."""
    share: float
    """Of that value in the sum of squared deviations, 0 to 1; 0 where all values are equal."""
    skewness: float

    @property
    def needed(self) -> int:
        """Values that the interval of a mean with this skewness needs."""
        return math.ceil(PER_SQUARED_SKEWNESS * self.skewness**2)

    @property
    def enough(self) -> bool:
        """There are as many values as needed."""
        return self.count >= self.needed


def tails(values: ArrayLike, groups: ArrayLike | None = None) -> Tails:
    """The tails of ``values`` [n], nats per sequence, whose ``groups`` [n] are independent.

    Raises ValueError without values.

    Example:
        >>> found = tails([0.0] * 99 + [1.0])
        >>> found.largest, round(found.share, 2), found.enough
        (99, 0.99, False)
    """
    values_G = np.asarray(values, np.float64)
    if groups is not None:
        values_G = group_scores(values_G, groups)
    if not values_G.size:
        raise ValueError("tails need at least one value")
    deviation_G = values_G - values_G.mean()
    largest = int(np.argmax(np.abs(deviation_G)))
    variance = float((deviation_G**2).mean())
    if variance <= (ROUNDING * float(np.abs(values_G).max())) ** 2:
        return Tails(count=values_G.size, largest=largest, share=0.0, skewness=0.0)
    return Tails(
        count=values_G.size,
        largest=largest,
        share=float(deviation_G[largest] ** 2) / (variance * values_G.size),
        skewness=float((deviation_G**3).mean()) / variance**1.5,
    )
