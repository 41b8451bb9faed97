"""More forwards, until the standard error is small enough or one of two models is better.

Forwards are made in rounds. A round is a plan of its own (its own systematic offset) for some
sequences of the table. The variance reduction is fitted on all rounds so far together, so a round
that ends early costs no precision.

Racing two models: block t = 1, 2, ... of whole groups of sequences is scored by both with the same
masks; d_t is the mean difference of z over the block (of blocks that differ in size, as
`mptune.lml.groups.group_scores` has it). After every block from the eighth on, the difference is

    mean(d_1..t)  +-  (t_{t-1, .975} / 1.96) s_t sqrt( 2 (t rho^2 + 1) / (t^2 rho^2)
                                                        ln( sqrt(t rho^2 + 1) / alpha ) )

with rho^2 = (-2 ln alpha + ln(-2 ln alpha) + 1) / 16: a normal-mixture confidence sequence
(Robbins 1970; Waudby-Smith et al. 2021, arXiv 2103.06476, eq. 9), inflated by Student's t for the
estimated s_t. It holds at all looks at once, as far as block means are near normal. With heavy
tails they are not, and s_t knows nothing of events that were not seen. So there is no verdict
before `LEAST` sequences (or all there are), before the skewness of the differences allows one (see
`mptune.lml.groups`), or where it needs the most favourable sequence or group.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.lml.covariates import Covariates
from mptune.lml.estimator import LMLEstimate, LogProb, forward_sums, observations, summarise
from mptune.lml.groups import (
    BoolArray,
    FloatArray,
    IntArray,
    Tails,
    group_numbers,
    group_scores,
    round_robin,
    tails,
)
from mptune.lml.plan import DEFAULT_VARIANCE, LMLPlan, VarianceLaw
from mptune.lml.regression import Observations

FIRST_ROUND = 128
"""Sequences of the first round; every later one doubles the forwards."""

MIN_BLOCKS = 8
"""Blocks before the first decision, so that their spread is known."""

LEAST = 1000
"""Sequences before the first decision: 0.3 % of them are then not all missed, at 95 %."""

LOOK_GROWTH = 1.02
"""Least growth of the blocks from one look to the next: a fit after every block costs too much."""

EARLY_GROWTH = 1.25
"""The same before `LEAST` sequences, where a look shows progress and decides nothing."""

ENOUGH = 0.05
"""More forwards of the same sequences stop when they explain less than this of the variance."""

_ROUND_STREAM = 1 << 34
"""Added to the seed, so that rounds and frozen plans draw different masks."""

Verdict = Literal["a", "b", "undecided"]

Doubt = Literal["few", "skewed", "carried"]
"""Why a difference whose interval excludes zero is undecided: there are too few sequences to have
seen rare ones; too few for the skewness; without the most favourable group it is not decided."""


@dataclass(frozen=True, eq=False)
class Side:
    """One model and the table it scores, prepared for rounds.

    ``tokens`` [N, D], ``observed`` [N, D], ``groups`` [N]. Two sides that are compared have the
    same sequences in the same order, in the same groups; their tokens may differ.
    """

    log_prob: LogProb
    tokens: NDArray[Any]
    observed: BoolArray
    groups: IntArray
    covariates: Covariates | None = None
    batch_size: int = 64

    @classmethod
    def of(
        cls,
        log_prob: LogProb,
        tokens: ArrayLike,
        observed: ArrayLike | None = None,
        covariates: Covariates | None = None,
        batch_size: int = 64,
        groups: ArrayLike | None = None,
    ) -> Side:
        """Check the shapes.

        Raises ValueError unless tokens are [N, D], and observed [N, D] and groups [N] if given.
        """
        tokens_ND = np.asarray(tokens)
        shown = np.ones(tokens_ND.shape, np.bool_) if observed is None else np.asarray(observed)
        if tokens_ND.ndim != 2 or shown.shape != tokens_ND.shape:
            raise ValueError(
                f"tokens and observed must be [N, D]; they have shapes {tokens_ND.shape} and "
                f"{shown.shape}"
            )
        groups_N = group_numbers(groups, len(tokens_ND))
        return cls(log_prob, tokens_ND, shown.astype(np.bool_), groups_N, covariates, batch_size)

    def usable(self) -> BoolArray:
        """Sequences with an observed position [N]."""
        return np.asarray(self.observed.any(axis=1))


class Gathered:
    """The forwards of one side so far: passes over its sequences, the last one perhaps in part."""

    def __init__(self, side: Side, seed: int) -> None:
        self.side, self.seed = side, seed
        self.rows: list[IntArray] = []
        self._passes: list[list[Observations]] = [[]]
        self._hashes: list[str] = []

    def add(
        self,
        rows: IntArray,
        forwards: int,
        *,
        again: bool = False,
        residual_variance: VarianceLaw = DEFAULT_VARIANCE,
    ) -> None:
        """Score ``rows`` [n] with a plan of their own; ``again``: begins a new pass over all."""
        if again:
            self._passes.append([])
        side, number = self.side, len(self._hashes)
        plan = LMLPlan.make(
            side.observed[rows],
            forwards=forwards,
            seed=self.seed + _ROUND_STREAM * (number + 1),
            residual_variance=residual_variance,
        )
        tokens_nD = side.tokens[rows]
        sums_nk = forward_sums(side.log_prob, tokens_nD, plan, side.batch_size)
        self._passes[-1].append(observations(plan, sums_nk, tokens_nD, side.covariates))
        self._hashes.append(plan.hash)
        if len(self._passes) == 1:
            self.rows.append(rows)

    def estimate(self) -> LMLEstimate:
        """The estimate from all forwards so far."""
        passes = [Observations.of_sequences(parts) for parts in self._passes]
        digest = hashlib.sha256("/".join(self._hashes).encode()).hexdigest()
        rows = np.concatenate(self.rows)
        return summarise(Observations.of_bands(passes), rows, self.side.groups[rows], digest)


def _shuffled(usable: BoolArray, seed: int) -> IntArray:
    """Indices of the usable sequences, in an order of the seed."""
    index = np.flatnonzero(usable)
    return np.random.default_rng([seed, 7]).permutation(index)


def refine_lml(
    side: Side,
    *,
    seed: int = 0,
    max_forwards: int | None = None,
    target_se: float | None = None,
) -> Iterator[LMLEstimate]:
    """Yield estimates of the same score, each more precise; stop iterating at any of them.

    New sequences come first, two forwards of each, in doubling rounds, from as many groups as there
    are; when all are used, more forwards of the same ones follow. It ends after ``max_forwards``,
    with the error ``target_se`` (nats per position, in the estimate's scope), or when only other
    sequences could help.

    Raises what `estimate_lml` raises.
    """
    order = round_robin(_shuffled(side.usable(), seed), side.groups)
    if not order.size:
        raise ValueError(
            f"no position is observed in any of the {len(side.tokens)} sequences: "
            "there is nothing to score"
        )
    gathered, spent, limit = Gathered(side, seed), 0, max_forwards or math.inf
    # The residual variance so far shapes the next round's plan; any law gives exact weights.
    law = DEFAULT_VARIANCE
    for rows, forwards, again in _rounds(order):
        affordable = int(min(len(rows), (limit - spent) // forwards))
        if affordable < (len(rows) if again else 1):
            return
        gathered.add(rows[:affordable], forwards, again=again, residual_variance=law)
        spent += affordable * forwards
        estimate = gathered.estimate()
        law = estimate.residual_variance
        yield estimate
        if finished(estimate, order.size, target_se):
            return


def finished(estimate: LMLEstimate, available: int, target_se: float | None) -> bool:
    """The target is reached, or more forwards of these sequences cannot help."""
    error, target = se_per_position(estimate), target_se or 0.0
    rounding = 1e-12 * abs(estimate.nats_per_position)
    seen_all, fixed = estimate.n_sequences == available, estimate.scope == "fixed"
    if error <= max(target, rounding) and (seen_all or fixed or estimate.tails.enough):
        return True
    if fixed:
        return target_se is None and seen_all
    of_masks = (estimate.se_fixed * estimate.n_sequences / float(estimate.positions.sum())) ** 2
    hopeless = target_se is not None and error**2 - of_masks >= target**2
    return seen_all and (hopeless or not of_masks > ENOUGH * error**2)


def _rounds(order: IntArray) -> Iterator[tuple[IntArray, int, bool]]:
    """Rows, forwards of each, and whether a new pass begins: doubling, first in rows."""
    start, size = 0, FIRST_ROUND
    while start < order.size:
        yield order[start : start + size], 2, False
        start, size = start + size, start + size
    forwards = 2
    while True:
        yield order, forwards, True
        forwards *= 2


def estimate_to_target(
    log_prob: LogProb,
    tokens: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    target_se: float,
    seed: int = 0,
    batch_size: int = 64,
    covariates: Covariates | None = None,
    max_forwards: int | None = None,
    groups: ArrayLike | None = None,
) -> LMLEstimate:
    """The first of `refine_lml` whose error is at most ``target_se`` nats per position.

    Where the data or ``max_forwards`` end before, the last one: compare its error with the target.

    Example:
        >>> import numpy as np
        >>> tokens = np.random.default_rng(0).integers(0, 4, (2000, 32))
        >>> log_prob = lambda tokens_BD, mask_BD: np.log(0.1 + 0.1 * tokens_BD)
        >>> estimate = estimate_to_target(log_prob, tokens, target_se=0.01)
        >>> estimate.n_sequences, round(estimate.nats_per_position, 1)
        (256, -1.5)
    """
    if not target_se > 0:
        raise ValueError(f"target_se must be positive; it is {target_se}")
    side = Side.of(log_prob, tokens, observed, covariates, batch_size, groups)
    *_, last = refine_lml(side, seed=seed, max_forwards=max_forwards, target_se=target_se)
    return last


def se_per_position(estimate: LMLEstimate) -> float:
    """Standard error of the score in the estimate's scope, nats per position: of a ratio."""
    return estimate.per(estimate.positions)[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class LMLComparison:
    """Model a against model b on the same sequences and masks; nats."""

    difference: float
    """a minus b, nats per sequence."""
    half_width: float
    """Of the interval, which allows for all looks, nats per sequence."""
    level: float
    verdict: Verdict
    """Which model has the higher score, if the interval excludes zero and there is no doubt."""
    doubt: Doubt | None
    """Why there is no verdict although the interval excludes zero."""
    tails: Tails
    """Of the differences of the groups."""
    forwards: int
    """Of each model."""
    blocks: int
    a: LMLEstimate
    b: LMLEstimate

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, nats per sequence."""
        return self.difference - self.half_width, self.difference + self.half_width


def sequential_half_width(block_means: ArrayLike, level: float = 0.95) -> float:
    """Half of the interval of the mean of block means [t], for near normal means and all t at once.

    Infinite for fewer than `MIN_BLOCKS` blocks.
    """
    from scipy.special import stdtrit

    means_t = np.asarray(block_means, np.float64)
    t, alpha = means_t.size, 1.0 - level
    if t < MIN_BLOCKS:
        return math.inf
    budget = -2 * math.log(alpha)
    scale = t * (budget + math.log(budget) + 1) / 16
    mixture = 2 * (scale + 1) / (t * scale) * math.log(math.sqrt(scale + 1) / alpha)
    two_sided = 1.0 - alpha / 2
    student = float(stdtrit(t - 1, two_sided)) / float(stdtrit(1e9, two_sided))
    return student * float(means_t.std(ddof=1)) * math.sqrt(mixture)


def race_lml(
    a: Side,
    b: Side,
    *,
    level: float = 0.95,
    block: int = 16,
    forwards: int = 1,
    seed: int = 0,
    max_forwards: int | None = None,
    least: int = LEAST,
) -> Iterator[LMLComparison]:
    """Yield a comparison after every block (or two in a hundred) that may decide, others seldom.

    Whole groups of together at least ``block`` sequences, with ``forwards`` masks each, are scored
    by both models at a time. It ends with a verdict other than "undecided", after ``max_forwards``
    of each model, or with the data. There is no verdict before ``least`` sequences; where there
    are fewer, only at the end of them.

    Raises ValueError for sides of different numbers of sequences or different groups, for a level
    outside (0, 1) and where fewer than `MIN_BLOCKS` blocks can be scored; and what `estimate_lml`
    raises.
    """
    blocks = _race_blocks(a, b, level, block, seed)
    sizes = np.cumsum([len(rows) for rows in blocks])
    if max_forwards is not None:
        blocks = blocks[: int(np.searchsorted(sizes, max_forwards // forwards, side="right"))]
    if len(blocks) < MIN_BLOCKS:
        raise ValueError(
            f"{sum(map(len, blocks))} sequences make {len(blocks)} blocks of whole groups with at "
            f"least {block} sequences, fewer than {MIN_BLOCKS} blocks: nothing can be decided; use "
            "more groups or more forwards"
        )
    first_verdict = min(int(np.searchsorted(sizes, least)) + 1, len(blocks))
    sides, next_look = (Gathered(a, seed), Gathered(b, seed)), MIN_BLOCKS
    for done, rows in enumerate(blocks, start=1):
        for gathered in sides:
            gathered.add(rows, forwards)
        if done >= next_look or done in (first_verdict, len(blocks)):
            comparison = _compare(*sides, level, few=done < first_verdict)
            yield comparison
            if comparison.verdict != "undecided":
                return
            next_look = math.ceil(done * (LOOK_GROWTH if done >= first_verdict else EARLY_GROWTH))


def _race_blocks(a: Side, b: Side, level: float, block: int, seed: int) -> list[IntArray]:
    """Rows of each block: groups in random order, until there are ``block`` sequences."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1; it is {level}")
    if block < 2:
        raise ValueError(f"a block must have at least 2 sequences; it has {block}")
    if len(a.tokens) != len(b.tokens):
        raise ValueError(
            f"the models must score the same sequences; they have {len(a.tokens)} and "
            f"{len(b.tokens)}"
        )
    if not np.array_equal(a.groups, b.groups):
        raise ValueError("the models must score the same groups of sequences")
    order = _shuffled(a.usable() & b.usable(), seed)
    # Whole groups, in the order of `round_robin`: large ones do not come first.
    groups_n = a.groups[order := round_robin(order, a.groups)]
    _, first, index_n = np.unique(groups_n, return_index=True, return_inverse=True)
    order = order[np.argsort(first[index_n], kind="stable")]
    blocks, start = list[IntArray](), 0
    for end in (np.flatnonzero(np.diff(a.groups[order], append=-1)) + 1).tolist():
        if end - start >= block:
            blocks.append(order[start:end])
            start = end
    return blocks


def decide(
    difference_n: FloatArray, block_n: IntArray, groups_n: IntArray, level: float, few: bool
) -> tuple[float, float, Verdict, Doubt | None, Tails]:
    """Mean difference, its half-width, the verdict, why there is none, and the tails.

    Args:
        difference_n: a minus b of each sequence [n], nats.
        block_n, groups_n: number of its block and of its group.
        few: too few sequences for a verdict.
    """

    def interval(values_n: FloatArray) -> tuple[float, float, Verdict]:
        means_t = group_scores(values_n, block_n)
        mean, half = float(means_t.mean()), sequential_half_width(means_t, level)
        return mean, half, "undecided" if abs(mean) <= half else "a" if mean > 0 else "b"

    difference, half, verdict = interval(difference_n)
    found = tails(difference_n, groups_n)
    if verdict == "undecided":
        return difference, half, verdict, None, found
    favourable_G = group_scores(math.copysign(1.0, difference) * difference_n, groups_n)
    carrier_n = groups_n == np.unique(groups_n)[favourable_G.argmax()]
    without_n = np.where(carrier_n, difference_n[~carrier_n].mean(), difference_n)
    if few:
        return difference, half, "undecided", "few", found
    if interval(without_n)[2] != verdict:
        return difference, half, "undecided", "carried", found
    if not found.enough:
        return difference, half, "undecided", "skewed", found
    return difference, half, verdict, None, found


def _compare(a: Gathered, b: Gathered, level: float, few: bool) -> LMLComparison:
    """Of everything gathered; the fits are linear in y, so their difference fits the difference."""
    estimates = a.estimate(), b.estimate()
    difference, half, verdict, doubt, found = decide(
        estimates[0].per_sequence - estimates[1].per_sequence,
        np.repeat(np.arange(len(a.rows)), [len(rows) for rows in a.rows]),
        estimates[0].groups,
        level,
        few,
    )
    return LMLComparison(
        difference=difference,
        half_width=half,
        level=level,
        verdict=verdict,
        doubt=doubt,
        tails=found,
        forwards=estimates[0].forwards_used,
        blocks=len(a.rows),
        a=estimates[0],
        b=estimates[1],
    )


def compare_lml(
    log_prob_a: LogProb,
    log_prob_b: LogProb,
    tokens: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    level: float = 0.95,
    block: int = 16,
    forwards: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    max_forwards: int | None = None,
    covariates: Covariates | None = None,
    groups: ArrayLike | None = None,
    least: int = LEAST,
) -> LMLComparison:
    """Which of two masked models scores higher on ``tokens`` [N, D], in as few forwards as needed.

    Both score the same sequences with the same masks, block by block, until the interval of the
    difference excludes zero, or data or ``max_forwards`` (of each model) end: then "undecided".
    ``groups`` [N] labels the document, subject or site of each sequence: a block has whole groups.
    There is no verdict before ``least`` sequences (or all there are), and none that few sequences
    make, see ``LMLComparison.doubt``. The interval allows for all looks. It is over the population
    of groups; what another training seed would change is not in it.

    Raises what `race_lml` raises.

    Example:
        >>> import numpy as np
        >>> tokens = np.random.default_rng(0).integers(0, 2, (2000, 32))
        >>> fair = lambda tokens_BD, mask_BD: np.full(tokens_BD.shape, np.log(0.5))
        >>> loaded = lambda tokens_BD, mask_BD: np.log(np.where(tokens_BD == 1, 0.7, 0.3))
        >>> found = compare_lml(fair, loaded, tokens)
        >>> found.verdict, found.forwards
        ('a', 1008)
    """
    sides = [
        Side.of(log_prob, tokens, observed, covariates, batch_size, groups)
        for log_prob in (log_prob_a, log_prob_b)
    ]
    *_, last = race_lml(
        *sides,
        level=level,
        block=block,
        forwards=forwards,
        seed=seed,
        max_forwards=max_forwards,
        least=least,
    )
    return last
