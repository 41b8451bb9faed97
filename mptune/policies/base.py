"""What a mask policy is: a law of the mask count, and everything that follows from it.

Notation (SCIENCE section 3)
    D       observed positions of one sequence
    M       mask count in 1..D;   r = M / D  mask rate;   s  training progress in [0, 1]
    q(M|s)  law of the mask count;   w(M|s)  weight of a sequence;   S(M)  mean log p of a masked
            position under uniformly random masks of size M, in nats

The training loss of a batch is  sum_i w_i sum_{j in mask_i} -log p_ij / normaliser.  Its
expectation is  sum_M omega(M) (-S(M)),  omega(M) = q(M) w(M) M up to the normaliser; training on
the accumulated log-marginal likelihood is omega = const (Moreno-Munoz et al. 2023, arXiv
2306.00520, Proposition 1).

A policy is a pure function of progress and a generator: it holds no state, so that any worker
can draw any batch again.

Shape suffixes: _B sequences of the global batch, _BD sequences x positions, _M = counts 1..D.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.spec import Section

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STREAM = 0x6D61736B
"""Counter word that keeps this stream apart from other uses of the same (seed, step)."""


class MaskPolicy(Section):
    """A law of the mask count, how a sequence is weighted, and what replaces a masked token.

    A subclass defines `pmf`, `law_words` and `examples`; its docstring says in one line what it
    is and names its source, and every field has a description with its range.
    """

    kind: str
    reduction: Literal["seq_mean", "token_mean", "elbo"] = Field(
        "seq_mean",
        description="weight of a sequence's summed loss: 1/M, 1 (high rates count more), 1/(D M q)",
    )
    corruption: Literal["mask", "bert"] = Field(
        "mask", description="masked positions become [MASK], or 80/10/10 [MASK], random, kept"
    )

    @abstractmethod
    def pmf(self, length: int, progress: float) -> FloatArray:
        """q(M | s) for M = 1..D.

        Args:
            length: D, observed positions of the sequence, at least 1.
            progress: s, the fraction of the training budget that is spent, in [0, 1].

        Returns:
            float64 [D], non-negative, summing to 1.
        """

    @abstractmethod
    def law_words(self) -> str:
        """The law in words for labels, e.g. `"fixed 15 %"`."""

    @classmethod
    @abstractmethod
    def examples(cls) -> list[Self]:
        """Parameters that the conformance tests run on."""

    def words(self) -> str:
        """The policy in words: the law, then what differs from the default treatment."""
        extra = {"seq_mean": "", "token_mean": ", token mean", "elbo": ", ELBO weights"}
        bert = ", 80/10/10 corruption" if self.corruption == "bert" else ""
        return self.law_words() + extra[self.reduction] + bert

    def support(self, length: int, progress: float) -> BoolArray:
        """Which counts M = 1..D can be drawn at this progress, bool [D]."""
        return self.pmf(length, progress) > 0

    def draw_counts(
        self, lengths_B: IntArray, progress: float, rng: np.random.Generator
    ) -> IntArray:
        """Mask counts of a batch by systematic sampling: M_i = Q_i^-1(p_i).

        p = (0..B-1 + U) / B with one uniform U, permuted: every p_i is uniform on its own, and
        together they cover (0, 1) evenly, so the counts vary less from batch to batch than
        independent draws.

        Args:
            lengths_B: observed positions of each sequence; may be 0.
            progress: s in [0, 1].
            rng: source of all randomness.

        Returns:
            int64 [B] with 1 <= M_i <= D_i; 0 where D_i = 0.
        """
        batch = len(lengths_B)
        p_B = rng.permutation((np.arange(batch) + rng.random()) / batch)
        counts_B = np.zeros(batch, np.int64)
        for length in np.unique(lengths_B[lengths_B > 0]):
            here_B = lengths_B == length
            counts_B[here_B] = quantile(self.pmf(int(length), progress), p_B[here_B])
        return counts_B

    def draw_masks(
        self, observed_BD: BoolArray, counts_B: IntArray, rng: np.random.Generator
    ) -> BoolArray:
        """Uniformly random subsets of the observed positions, of exactly the given sizes.

        Raises:
            ValueError: a sequence has fewer observed positions than its count.
        """
        if (counts_B > observed_BD.sum(1)).any():
            raise ValueError("a mask count exceeds the sequence's observed positions")
        keys_BD = np.where(observed_BD, rng.random(observed_BD.shape), 2.0)
        order_BD = np.argsort(keys_BD, axis=1)
        mask_BD = np.zeros(observed_BD.shape, bool)
        chosen_BD = np.arange(observed_BD.shape[1]) < counts_B[:, None]
        np.put_along_axis(mask_BD, order_BD, chosen_BD, axis=1)
        return mask_BD

    def corrupt(
        self,
        tokens_BD: NDArray[Any],
        mask_BD: BoolArray,
        rng: np.random.Generator,
        *,
        mask_id: int,
        vocabulary_size: int,
    ) -> IntArray:
        """The model's inputs: what stands at the masked positions instead of the tokens.

        `mask` puts [MASK] everywhere. `bert` puts [MASK] at 80 %, a random symbol at 10 % and
        leaves 10 % (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

        Returns:
            int64 [B, D].
        """
        inputs_BD = np.where(mask_BD, mask_id, tokens_BD.astype(np.int64))
        if self.corruption == "bert":
            u_BD = rng.random(mask_BD.shape)
            random_BD = rng.integers(vocabulary_size, size=mask_BD.shape)
            inputs_BD = np.where(mask_BD & (u_BD >= 0.8), random_BD, inputs_BD)
            inputs_BD = np.where(mask_BD & (u_BD >= 0.9), tokens_BD, inputs_BD)
        return inputs_BD

    def weights(self, counts_B: IntArray, lengths_B: IntArray, progress: float) -> FloatArray:
        """w_i, the weight on the *sum* of a sequence's masked losses.

        seq_mean    1 / M             every sequence counts the same
        token_mean  1                 every masked token counts the same: high rates count more
        elbo        1 / (D M q(M|s))  unbiased for -LML / D, in nats per position (OA-ARDM,
                                      Hoogeboom et al. 2022, arXiv 2110.02037), where q > 0

        Returns:
            float64 [B]; 0 where M_i = 0.
        """
        weights_B = np.zeros(len(counts_B))
        for length in np.unique(lengths_B[counts_B > 0]):
            here_B = (lengths_B == length) & (counts_B > 0)
            weights_B[here_B] = self._count_weights(int(length), progress)[counts_B[here_B] - 1]
        return weights_B

    def normaliser(self, counts_B: IntArray) -> float:
        """What the batch's weighted sum is divided by, so that losses are nats per position.

        token_mean: the masked positions of the global batch. Otherwise its sequences that have
        a masked position, which is B unless a sequence has no observed position. At least 1.
        """
        total = counts_B.sum() if self.reduction == "token_mean" else (counts_B > 0).sum()
        return float(max(total, 1))

    def omega(self, length: int, steps: int = 64) -> FloatArray:
        """omega(M), the share of S(M) in the expected loss, averaged over training.

        Constant 1/D is training on the accumulated log-marginal likelihood.

        Args:
            length: D.
            steps: points of progress that stand for the whole of training.

        Returns:
            float64 [D]; sums to 1, or under `elbo` to the share of counts that can be drawn.
        """
        return self._mean_over_progress(lambda s: self._omega_at(length, s), steps)

    def mean_rate(self, length: int, steps: int = 64) -> float:
        """E[M] / D over the whole of training, a fraction in (0, 1]; arguments as `omega`."""
        rates_M = np.arange(1, length + 1) / length
        return float(self._mean_over_progress(lambda s: self.pmf(length, s), steps) @ rates_M)

    def _omega_at(self, length: int, progress: float) -> FloatArray:
        counts_M = np.arange(1, length + 1)
        q_M = self.pmf(length, progress)
        omega_M = q_M * self._count_weights(length, progress) * counts_M
        return omega_M / (q_M @ counts_M) if self.reduction == "token_mean" else omega_M

    def _count_weights(self, length: int, progress: float) -> FloatArray:
        """w(M | s) for M = 1..D; 0 where q(M | s) = 0 under `elbo`."""
        counts_M = np.arange(1, length + 1)
        if self.reduction == "token_mean":
            return np.ones(length)
        if self.reduction == "seq_mean":
            return 1.0 / counts_M
        q_M = self.pmf(length, progress)
        return np.divide(1.0, length * counts_M * q_M, out=np.zeros(length), where=q_M > 0)

    @staticmethod
    def _mean_over_progress(value: Callable[[float], FloatArray], steps: int) -> FloatArray:
        midpoints = (np.arange(steps) + 0.5) / steps
        return np.asarray(np.mean([value(float(s)) for s in midpoints], axis=0))


class RatePolicy(MaskPolicy):
    """A policy whose rate r has a continuous law: M = ceil(r D), so q(M) = F(M/D) - F((M-1)/D).

    With r uniform on (0, 1) this is M uniform on 1..D exactly.
    """

    @abstractmethod
    def cdf(self, rates: FloatArray) -> FloatArray:
        """F(r) at rates in [0, 1], non-decreasing from F(0) to F(1)."""

    def pmf(self, length: int, progress: float) -> FloatArray:
        """q(M | s) by differences of `cdf`, see `MaskPolicy.pmf`."""
        q_M = np.maximum(np.diff(self.cdf(np.arange(length + 1) / length)), 0.0)
        return np.asarray(q_M / q_M.sum())


@dataclass(frozen=True)
class MaskedBatch:
    """One global batch, ready to train on; worker k of n trains on its rows k*B/n:(k+1)*B/n.

    The loss is sum_i weight_i sum_{j in mask_i} -log p_ij / normaliser, with the global
    normaliser on every worker, so that the workers' losses add up to the batch's.
    """

    inputs_BD: IntArray
    mask_BD: BoolArray
    weight_B: FloatArray
    normaliser: float


def draw_batch(
    policy: MaskPolicy,
    tokens_BD: NDArray[Any],
    observed_BD: BoolArray,
    *,
    progress: float,
    seed: int,
    step: int,
    mask_id: int,
    vocabulary_size: int,
) -> MaskedBatch:
    """Mask the global batch of one step: a pure function of its arguments.

    The generator is Philox with the key (seed, step), so that the masks depend neither on the
    number of workers nor on what was drawn before.

    Args:
        policy: the mask policy.
        tokens_BD: symbols 0..vocabulary_size-1 at observed positions, anything elsewhere.
        observed_BD: positions that may be masked; those of padding and missing values are not.
        progress: s in [0, 1].
        seed: the trial's seed, at least 0.
        step: the optimizer step, at least 0.
        mask_id: input id of [MASK].
        vocabulary_size: symbols that can be predicted.
    """
    bits = np.random.Philox(key=np.array([seed, step], np.uint64), counter=_STREAM << 192)
    rng = np.random.Generator(bits)
    observed_BD = np.asarray(observed_BD, bool)
    lengths_B = observed_BD.sum(1)
    counts_B = policy.draw_counts(lengths_B, progress, rng)
    mask_BD = policy.draw_masks(observed_BD, counts_B, rng)
    inputs_BD = policy.corrupt(
        tokens_BD, mask_BD, rng, mask_id=mask_id, vocabulary_size=vocabulary_size
    )
    weight_B = policy.weights(counts_B, lengths_B, progress)
    return MaskedBatch(inputs_BD, mask_BD, weight_B, policy.normaliser(counts_B))


def quantile(q_M: FloatArray, p: FloatArray) -> IntArray:
    """Q^-1(p): the smallest M whose cumulative probability exceeds p, always with q(M) > 0.

    >>> quantile(np.array([0.5, 0.0, 0.5]), np.array([0.0, 0.5, 1.0])).tolist()
    [1, 3, 3]
    """
    last = int(np.flatnonzero(q_M)[-1])
    return np.searchsorted(np.cumsum(q_M)[:last], p, side="right").astype(np.int64) + 1


def percent(rate: float) -> str:
    """A rate for labels, without the sign: `0.15` is `"15"`."""
    return f"{100 * rate:.3g}"


def short(value: float) -> str:
    """A parameter for labels, three significant digits: `"2.0"`, `"0.333"`."""
    return str(float(f"{value:.3g}"))
