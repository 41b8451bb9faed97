"""What a mask policy is: a law of the mask count, and everything that follows from it.

Notation
    D       observed positions of one sequence
    M       mask count in 1..D;   r = M / D  mask rate;   s  training progress in [0, 1]
    q(M|s)  law of the mask count;   w(M|s)  weight of a sequence;   S(M)  mean log p of a masked
            position under uniformly random masks of size M, in nats

The training loss of a batch is  sum_i w_i sum_{j in mask_i} -log p_ij / normaliser.  Its
expectation is  sum_M omega(M) (-S(M)),  omega(M) = q(M) w(M) M up to the normaliser; training on
the accumulated log-marginal likelihood is omega = const (Moreno-Munoz et al. 2023, arXiv
2306.00520, Proposition 1).

A policy is a pure function of progress and a generator. It holds no state, so every worker can draw
every batch.

Shape suffixes: _B sequences of the global batch, _BD sequences x positions, _M = counts 1..D.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.policies._structures import AnyStructure, choose_units
from mptune.spec.schema import Plugin, Section
from mptune.spec.source import read_plugin

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RATE_BUCKETS = 10
"""Equal intervals of the mask rate by which losses are recorded and laws are learned."""

OUTER = ("reduction", "corruption", "structure")
"""Fields that only the outermost policy of a spec decides."""

_STREAM = 0x6D61736B
"""Counter word of the Philox generator, so that masks share no random numbers with other uses of
the same (seed, step)."""


@dataclass(frozen=True)
class LossByRate:
    """Training losses in each interval of the mask rate ((k - 1)/R, k/R], k = 1..R.

    y is a sequence's mean loss over its masked positions, nats per position.

    Attributes:
        count: sequences, [R].
        mean: mean of y, [R]; 0 where the interval is empty.
        variance: variance of y, nats^2, [R]; 0 where the interval is empty.
    """

    count: FloatArray
    mean: FloatArray
    variance: FloatArray

    @classmethod
    def of_sums(cls, sums_3R: FloatArray) -> LossByRate:
        """From sums of 1, y and y^2 over sequences."""
        count_R, total_R, square_R = np.asarray(sums_3R, np.float64)
        seen_R = np.maximum(count_R, 1e-12)
        mean_R = total_R / seen_R
        return cls(count_R, mean_R, np.maximum(square_R / seen_R - mean_R**2, 0.0))


def rate_bucket(counts_B: IntArray, lengths_B: IntArray) -> IntArray:
    """The interval 0..R-1 that each sequence's mask rate M / D falls into; 0 where D is 0."""
    filled_B = np.maximum(lengths_B, 1)
    return np.maximum(-(-counts_B * RATE_BUCKETS // filled_B) - 1, 0)


class MaskPolicy(Plugin):
    """A law of the mask count, how a sequence is weighted, and what replaces a masked token.

    A subclass defines `pmf`, `law_words` and `EXAMPLES`. Its docstring describes it in one line and
    names its source; every field has a description with its range.
    """

    kind: str
    reduction: Literal["seq_mean", "token_mean", "elbo"] = Field(
        "seq_mean",
        description="weight of a sequence's summed loss: 1/M, 1 (high rates count more), 1/(D M q)",
    )
    corruption: Literal["mask", "bert", "swap"] = Field(
        "mask",
        description="masked positions become [MASK]; 80/10/10 [MASK], random, kept; or the "
        "column's value of another sequence",
    )
    structure: AnyStructure = Field(
        "token",
        validate_default=True,
        description="what is masked together: single tokens, spans, words, or blocks of a grid",
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
        """The law as text for labels, e.g. `"fixed 15 %"`."""

    def words(self) -> str:
        """The policy as text: the law, then every other field that is not at its default."""
        weights = {"seq_mean": "", "token_mean": "token mean", "elbo": "ELBO weights"}
        inputs = {"mask": "", "bert": "80/10/10 corruption", "swap": "swap corruption"}
        others = (weights[self.reduction], inputs[self.corruption], self.structure.words())
        return ", ".join([self.law_words(), *filter(None, others)])

    @property
    def relearn_every(self) -> float | None:
        """Progress between two updates of a law that is learned in training; None if it is not."""
        every = [e for p in _policies_in(self) if (e := p.relearn_every) is not None]
        return min(every, default=None)

    def outer(self) -> dict[str, Any]:
        """The fields that a policy made from this one takes over, as JSON."""
        return self.model_dump(mode="json", include=set(OUTER))

    def learn(self, losses: LossByRate) -> MaskPolicy:
        """The policy for the next part of training, a pure function of the losses so far.

        A policy whose law is not learned returns itself; one made of others lets each part learn.
        """
        if self.relearn_every is None:
            return self
        fields = {name: _learned(getattr(self, name), losses) for name in type(self).model_fields}
        return self.model_copy(update=fields)

    @classmethod
    def load(cls, path: str | Path) -> MaskPolicy:
        """Read the policy of a YAML file, e.g. of `mptune best RUN_DIR --export policy.yaml`.

        Raises:
            InputError: one line per problem, naming file, line, key, value and rule.
        """
        return read_plugin(Path(path), "policies", "kind")

    def changes(self) -> tuple[float, ...]:
        """Points of progress inside training at which the policy may become another one."""
        return ()

    def until(self, progress: float) -> dict[str, Any]:
        """What decides the masks before this progress, as JSON: equal values draw equal masks."""
        return self.model_dump(mode="json")

    @property
    def is_a_law(self) -> bool:
        """Whether its `pmf` alone decides its masks: then a schedule draws the same from it."""
        methods = ("draw_counts", "draw_masks", "corrupt", "weights", "normaliser")
        return all(getattr(type(self), name) is getattr(MaskPolicy, name) for name in methods)

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
        self,
        observed_BD: BoolArray,
        counts_B: IntArray,
        rng: np.random.Generator,
        words_BD: IntArray | None = None,
    ) -> BoolArray:
        """Random subsets of the observed positions, of exactly the given sizes.

        Uniformly random for structure `token`; otherwise whole units, the last one cut off.

        Args:
            observed_BD: positions that may be masked.
            counts_B: M of each sequence.
            rng: source of all randomness.
            words_BD: the word of every position, for structure `whole_word`.

        Raises:
            ValueError: a sequence has fewer observed positions than its count, or the sequences
                do not fit the structure.
        """
        units_BD = self.structure.units(observed_BD.shape, rng, words_BD)
        return choose_units(observed_BD, counts_B, units_BD, rng)

    def corrupt(
        self,
        tokens_BD: NDArray[Any],
        mask_BD: BoolArray,
        rng: np.random.Generator,
        *,
        mask_id: int,
        vocabulary_size: int,
        observed_BD: BoolArray,
    ) -> IntArray:
        """The model's inputs: tokens, replaced at the masked positions.

        `mask`: by [MASK]. `bert`: by [MASK] at 80 %, by a random symbol at 10 %, and kept at 10 %
        (Devlin et al. 2019, section 3.1). `swap`: by the same column's observed value of another
        sequence of the batch (VIME, Yoon et al. 2020, NeurIPS).

        Returns:
            int64 [B, D].
        """
        tokens_BD = tokens_BD.astype(np.int64)
        if self.corruption == "swap":
            # Each column's observed values are shuffled: every one is used once.
            keys_BD = np.where(observed_BD, rng.random(mask_BD.shape), 2.0)
            shuffled_BD = np.argsort(keys_BD, axis=0)
            place_BD = np.maximum(np.cumsum(observed_BD, axis=0) - 1, 0)
            source_BD = np.take_along_axis(shuffled_BD, place_BD, axis=0)
            return np.where(mask_BD, np.take_along_axis(tokens_BD, source_BD, axis=0), tokens_BD)
        inputs_BD = np.where(mask_BD, mask_id, tokens_BD)
        if self.corruption == "mask":
            return inputs_BD
        u_BD = rng.random(mask_BD.shape)
        random_BD = rng.integers(vocabulary_size, size=mask_BD.shape)
        inputs_BD = np.where(mask_BD & (u_BD >= 0.8), random_BD, inputs_BD)
        return np.where(mask_BD & (u_BD >= 0.9), tokens_BD, inputs_BD)

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
            steps: points of progress to average over.

        Returns:
            float64 [D]; sums to 1, or under `elbo` to the share of counts that can be drawn.
        """
        return _mean_over_progress(lambda s: self.omega_at(length, s), steps)

    def omega_at(self, length: int, progress: float) -> FloatArray:
        """omega(M | s), the share of S(M) in the expected loss at progress s, float64 [D]."""
        counts_M = np.arange(1, length + 1)
        q_M = self.pmf(length, progress)
        omega_M = q_M * self._count_weights(length, progress) * counts_M
        return omega_M / (q_M @ counts_M) if self.reduction == "token_mean" else omega_M

    def mean_rate(self, length: int, steps: int = 64) -> float:
        """E[M] / D over the whole of training, a fraction in (0, 1]; arguments as `omega`."""
        rates_M = np.arange(1, length + 1) / length
        return float(_mean_over_progress(lambda s: self.pmf(length, s), steps) @ rates_M)

    def _count_weights(self, length: int, progress: float) -> FloatArray:
        """w(M | s) for M = 1..D; 0 where q(M | s) = 0 under `elbo`."""
        counts_M = np.arange(1, length + 1)
        if self.reduction == "token_mean":
            return np.ones(length)
        if self.reduction == "seq_mean":
            return 1.0 / counts_M
        q_M = self.pmf(length, progress)
        return np.divide(1.0, length * counts_M * q_M, out=np.zeros(length), where=q_M > 0)


def _mean_over_progress(value: Callable[[float], FloatArray], steps: int) -> FloatArray:
    midpoints = (np.arange(steps) + 0.5) / steps
    return np.asarray(np.mean([value(float(s)) for s in midpoints], axis=0))


def _policies_in(value: object) -> list[MaskPolicy]:
    """The policies directly inside a policy, a section or a tuple of them."""
    parts = value if isinstance(value, tuple) else ()
    if isinstance(value, Section):
        parts = tuple(getattr(value, name) for name in type(value).model_fields)
    found: list[MaskPolicy] = []
    for part in parts:
        found += [part] if isinstance(part, MaskPolicy) else _policies_in(part)
    return found


def _learned(value: Any, losses: LossByRate) -> Any:
    if isinstance(value, MaskPolicy):
        return value.learn(losses)
    if isinstance(value, tuple):
        return tuple(_learned(part, losses) for part in value)
    if _policies_in(value):
        fields = {name: _learned(getattr(value, name), losses) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    return value


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

    The loss is sum_i weight_i sum_{j in mask_i} -log p_ij / normaliser. Every worker divides by the
    global normaliser, so the workers' losses add up to the batch's.
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
    words_BD: IntArray | None = None,
) -> MaskedBatch:
    """Mask the global batch of one step: a pure function of its arguments.

    The generator is Philox with the key (seed, step), so the masks depend neither on the number of
    workers nor on earlier batches.

    Args:
        policy: the mask policy.
        tokens_BD: symbols 0..vocabulary_size-1 at observed positions, anything elsewhere.
        observed_BD: positions that may be masked; those of padding and missing values are not.
        progress: s in [0, 1].
        seed: the trial's seed, at least 0.
        step: the optimizer step, at least 0.
        mask_id: input id of [MASK].
        vocabulary_size: symbols that can be predicted.
        words_BD: the word of every position, for structure `whole_word`.

    Raises:
        ValueError: the sequences do not fit the policy's structure.
    """
    bits = np.random.Philox(key=np.array([seed, step], np.uint64), counter=_STREAM << 192)
    rng = np.random.Generator(bits)
    observed_BD = np.asarray(observed_BD, bool)
    lengths_B = observed_BD.sum(1)
    counts_B = policy.draw_counts(lengths_B, progress, rng)
    mask_BD = policy.draw_masks(observed_BD, counts_B, rng, words_BD)
    inputs_BD = policy.corrupt(
        tokens_BD,
        mask_BD,
        rng,
        mask_id=mask_id,
        vocabulary_size=vocabulary_size,
        observed_BD=observed_BD,
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
