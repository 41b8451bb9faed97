"""Sequences that belong together: standard errors over groups, and draws that spread over them.

Sequences of one document, subject or site are alike, so a score is measured on G groups, not on n
sequences. Everything here is of a ratio of totals over groups, of which the mean is the case L = n:

    R = sum_g Z_g / sum_g L_g       Z_g, L_g: totals of values and of sizes in group g
    u_g = Z_g - R L_g,  w_g = L_g / sum L
    se^2 = (G - 1) / G  sum_g (u_g / (1 - w_g))^2 / (sum L)^2
    1 / df = sum w_g^2 + (sum v_g)^2 - sum v_g^2,   v_g = w_g^2 / (1 - w_g)

The variance is the jackknife's that leaves out one group at a time (Cochran, Sampling Techniques,
3rd ed. 1977, section 6.17); df are Satterthwaite's for the linearised ratio (Bell & McCaffrey,
Survey Methodology 28, 2002; their CR2 covers up to 1.5 points less, see benchmarks/RESULTS.md).
Groups of one size give the standard error of G group means, and df = G - 1.

The population is one of groups, and R its score per sequence (or per token): a group counts by the
number of its sequences that were drawn.

A standard error is one of the values that were seen. Where one sequence in hundreds decides the
mean (a heavy tail), most samples lack it or have one too many, and an interval of Student's t
covers too little. Of G values v (one per group of sequences, see `group_scores`):

    share   max_g (v_g - mean)^2 / sum_g (v_g - mean)^2        of the largest contribution
    G_1     mean (v - mean)^3 / (mean (v - mean)^2)^{3/2}      the skewness
    needed  40 G_1^2 values. With 25 G_1^2 a single 95 % interval misses at most 6 % (Cochran,
            Sampling Techniques, 3rd ed. 1977, section 2.15); a race looks often, and needs more

Where one of G values makes up all of the spread, G_1^2 is about G: needed exceeds G at any G.

Shape suffixes: _n sequences, _G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.trial import MIN_GROUPS as MIN_GROUPS

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def group_numbers(groups: ArrayLike | None, count: int) -> IntArray:
    """Number of the group of each of ``count`` sequences, from labels [count] of any type.

    None makes each sequence a group of its own. Raises ValueError for another number of labels, and
    for missing ones (NaN, None).
    """
    if groups is None:
        return np.arange(count)
    labels = np.asarray(groups)
    if labels.shape != (count,):
        raise ValueError(
            f"groups must hold one label for each of the {count} sequences; it has shape "
            f"{labels.shape}"
        )
    if missing := sum(label is None or label != label for label in labels.tolist()):
        raise ValueError(f"{missing} of {count} sequences have no group; give each its own label")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def group_standard_error(
    values: ArrayLike, groups: ArrayLike, sizes: ArrayLike | None = None
) -> tuple[float, float]:
    """Standard error of sum(values) / sum(sizes) over new groups, and its degrees of freedom.

    ``values`` [n], ``groups`` [n]: any labels; ``sizes`` [n]: by default 1, and the ratio is the
    mean. Both are NaN with fewer than two groups.

    Example:
        >>> group_standard_error([1.0, 3.0, 2.0, 6.0], [0, 0, 1, 1])  # of the means 2 and 4
        (1.0, 1.0)
    """
    values_n = np.asarray(values, np.float64)
    sizes_n = np.ones(len(values_n)) if sizes is None else np.asarray(sizes, np.float64)
    names, index_n = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    total = float(sizes_n.sum())
    u_G = np.bincount(index_n, values_n - sizes_n * (values_n.sum() / total))
    w_G = np.bincount(index_n, sizes_n) / total
    v_G = w_G**2 / (1 - w_G)
    error = math.sqrt((1 - 1 / len(names)) * float(((u_G / (1 - w_G)) ** 2).sum())) / total
    return error, 1 / float((w_G**2).sum() + v_G.sum() ** 2 - (v_G**2).sum())


def group_scores(values: ArrayLike, groups: ArrayLike) -> FloatArray:
    """One value per group [..., G] of ``values`` [..., n]: as good as G independent sequences.

    Linear in ``values``. Their mean is that of ``values``, and their standard error, as of G
    independent values, is that of `group_standard_error`, slightly less where sizes differ much.
    """
    values_n = np.asarray(values, np.float64)
    sizes_G = np.unique(np.asarray(groups), return_counts=True)[1]
    mean: FloatArray = values_n.mean(-1, keepdims=True)
    if len(sizes_G) < 2:
        return mean
    by_group = np.argsort(np.asarray(groups), kind="stable")
    if len(sizes_G) == by_group.size:
        return values_n[..., by_group]
    starts = np.cumsum(sizes_G) - sizes_G
    u_G = np.add.reduceat((values_n - mean)[..., by_group], starts, axis=-1)
    u_G *= (len(sizes_G) - 1) / (by_group.size - sizes_G)
    return mean + u_G - u_G.mean(-1, keepdims=True)


def intraclass_correlation(values: ArrayLike, groups: ArrayLike) -> float:
    """Correlation of two values [n] of one group: the analysis of variance's estimate.

    NaN where no group has two sequences, or there is one group only. Negative estimates are
    possible: values of one group then differ more than those of two.

    Donner, International Statistical Review 54, 1986, doi 10.2307/1403259.
    """
    values_n = np.asarray(values, np.float64)
    names, index_n, sizes_G = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    G, n = len(names), len(values_n)
    if not 1 < G < n:
        return math.nan
    means_G = np.bincount(index_n, values_n) / sizes_G
    between = float((sizes_G * (means_G - values_n.mean()) ** 2).sum()) / (G - 1)
    within = float(((values_n - means_G[index_n]) ** 2).sum()) / (n - G)
    typical = (n - float((sizes_G**2).sum()) / n) / (G - 1)
    return (between - within) / max(between + (typical - 1) * within, 1e-300)


def round_robin(order: IntArray, groups: ArrayLike) -> IntArray:
    """Sort rows so that each beginning of them holds as many groups as it can, as evenly as it can.

    ``order`` [n]: rows in random order; ``groups`` [N]: the group of every row. First comes one row
    of each group, then a second one of each group that has it, and so on. The order of the groups
    is random if ``order`` is, and large groups do not come first.

    Example:
        >>> round_robin(np.array([0, 2, 1, 3, 4]), [7, 7, 7, 8, 9]).tolist()
        [0, 3, 4, 2, 1]
    """
    rows = np.sort(order)
    place = np.empty(int(rows[-1]) + 1 if rows.size else 0, np.int64)
    place[order] = np.arange(order.size)
    _, first, index_n = np.unique(np.asarray(groups)[rows], return_index=True, return_inverse=True)
    # A group's place is that of its lowest row; the first of all its rows favours large groups.
    group_n, place_n = place[rows[first]][index_n], place[rows]
    by_group = np.lexsort((place_n, group_n))
    starts = np.flatnonzero(np.diff(group_n[by_group], prepend=-1))
    round_n = np.empty_like(place_n)
    round_n[by_group] = np.arange(order.size) - np.repeat(
        starts, np.diff(starts, append=order.size)
    )
    return rows[np.lexsort((group_n, round_n))]


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
