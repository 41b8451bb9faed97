"""How far a masked model is from having one joint distribution, and its scores at single rates.

Notation: R the visible positions, i and j two masked ones. A model whose conditionals come from one
joint p has

    log p(x_i | x_R) + log p(x_j | x_R, x_i)  =  log p(x_j | x_R) + log p(x_i | x_R, x_j),

so the difference of the two sides says how much the order in which positions are revealed matters
(the orders of Uria, Murray, Larochelle 2014, arXiv 1310.1757). Everything is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mptune.lml.adaptive import Side
from mptune.lml.estimator import as_float64, forward_sums
from mptune.lml.groups import BoolArray, FloatArray, IntArray, group_standard_error
from mptune.lml.plan import LMLPlan


@dataclass(frozen=True, eq=False)
class OrderGap:
    """Differences between the two orders of pairs of positions, nats."""

    rms: float
    """Root mean square over pairs; 0 for a model with one joint distribution."""
    se: float
    """Standard error of `rms`, by the delta method."""
    pairs: int
    gap_n: FloatArray
    """[pairs], in random order of the two positions."""


def order_gap(side: Side, *, pairs: int = 128, seed: int = 0) -> OrderGap:
    """Three forwards for each of ``pairs`` pairs of positions, at random mask counts.

    Raises ValueError where no sequence has two observed positions.
    """
    usable = np.flatnonzero(side.observed.sum(axis=1) >= 2)
    if not usable.size:
        raise ValueError("no sequence has two observed positions: there are no orders to compare")
    rows_n = np.random.default_rng(seed).choice(usable, pairs)
    both_nD, first_n, second_n = _pairs(side.observed[rows_n], seed)
    index_n = np.arange(pairs)
    without_first, without_second = both_nD.copy(), both_nD.copy()
    without_first[index_n, first_n] = False
    without_second[index_n, second_n] = False
    batches = [slice(start, start + side.batch_size) for start in range(0, pairs, side.batch_size)]
    tokens_nD = side.tokens[rows_n]
    values = [
        np.concatenate([as_float64(side.log_prob(tokens_nD[b], mask_nD[b])) for b in batches])
        for mask_nD in (both_nD, without_first, without_second)
    ]
    gap_n = (
        values[0][index_n, first_n]
        + values[1][index_n, second_n]
        - values[0][index_n, second_n]
        - values[2][index_n, first_n]
    )
    mean_square = float((gap_n**2).mean())
    rms, error = mean_square**0.5, group_standard_error(gap_n**2, side.groups[rows_n])[0]
    return OrderGap(rms, error / max(2 * rms, 1e-300), pairs, gap_n)


def _pairs(observed_nD: BoolArray, seed: int) -> tuple[BoolArray, IntArray, IntArray]:
    """Masks of at least two positions [n, D], and two random positions of each."""
    counts_n = 2 + np.random.default_rng([seed, 1]).integers(0, observed_nD.sum(axis=1) - 1)
    words_nD = np.random.default_rng([seed, 2]).random(observed_nD.shape)
    order_nD = np.where(observed_nD, words_nD, 2.0).argsort(axis=1)
    mask_nD = np.zeros(observed_nD.shape, np.bool_)
    chosen_nD = np.arange(observed_nD.shape[1]) < counts_n[:, None]
    np.put_along_axis(mask_nD, order_nD, chosen_nD, axis=1)
    return mask_nD, order_nD[:, 0], order_nD[:, 1]


@dataclass(frozen=True)
class ScoreAtRate:
    """Score at one mask rate, nats per masked position."""

    rate: float
    nats_per_position: float
    se: float
    forwards: int


def score_at_rate(side: Side, rate: float, *, seed: int = 0) -> ScoreAtRate:
    """S(r) by one forward per sequence; rate 0 is M = 1.

    The negative is the usual validation loss at that rate; at M = 1, times D, it is the
    pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659). Neither is a log likelihood.
    """
    plan = LMLPlan.make(side.observed, forwards=1, seed=seed, groups=side.groups)
    plan = plan.at_rate(rate, seed=seed)
    sums_n = forward_sums(side.log_prob, side.tokens, plan, 64)[plan.kept, 0]
    counts_n = plan.counts_Nk[plan.kept, 0]
    score = float(sums_n.sum() / counts_n.sum())
    error, _ = group_standard_error(sums_n, plan.groups_N[plan.kept], counts_n)
    return ScoreAtRate(rate, score, error, len(sums_n))
