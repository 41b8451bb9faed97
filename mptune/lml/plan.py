"""The frozen sampling plan: which positions of which sequence are masked, the same for every trial.

Notation
    N, D    sequences and positions of the token table; D_i observed positions of sequence i
    k       forwards per sequence; the forwards of one sequence are its *bands* b = 0..k-1
    R       rows of a batch: pairs (sequence i, band b)
    M       mask count in 1..D_i;   q(M) its sampling law;   w = 1 / (D_i q(M)) its weight
    p       systematic sample of (0, 1):  p = (0..n k - 1 + U) / (n k) with one uniform U

Shape suffixes: _ND sequences x positions, _Nk sequences x bands, _RD batch x positions.

Every random number is a hash of (seed, purpose, i, b, j). So a mask does not depend on the batch,
the rank, the columns of padding or the version of numpy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.lml.groups import BoolArray, FloatArray, IntArray, group_numbers
from mptune.paths import write_aside

UIntArray = NDArray[np.uint64]

VarianceLaw = tuple[float, float, float]
"""(a, b, c), non-negative: residual variance a + b/t + c t^8 at mask rate t = M / D."""

DEFAULT_VARIANCE: VarianceLaw = (1.0, 0.25, 1.0)
"""Within 15-35 % of the best law on HMM and PPCA data; a pilot removes most of the difference."""

SCHEME = 2
"""Version of the sampling below; part of the hash, so that two versions are never compared."""

FOLDS = 4
"""Folds of the cross-fitted regression: row i of the scored sequences is in fold i modulo 4."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_OFFSET, _ORDER, _MASK, _PLACE = range(4)


def _mix(x: UIntArray) -> UIntArray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _random_words(seed: int, *address: ArrayLike) -> UIntArray:
    """Random 64-bit words, one for each broadcast element of ``address``."""
    words = np.array([seed % 2**64], dtype=np.uint64)
    for part in address:
        words = _mix(words + (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return words


def variance_basis(t: FloatArray) -> FloatArray:
    """The terms [1, 1/t, t^8] of the residual variance at mask rate t, on a new last axis."""
    return np.stack([np.ones_like(t), 1.0 / t, t**8], axis=-1)


def _counts_and_weights(
    lengths: IntArray, p_nk: FloatArray, variance: VarianceLaw
) -> tuple[IntArray, FloatArray]:
    """M = Q_i^{-1}(p) and w = 1 / (D_i q_i(M)), one quantile function for each distinct D_i.

    q(M) is proportional to the residual's standard deviation (Neyman 1934).
    """
    counts, weights = np.zeros(p_nk.shape, np.int64), np.zeros(p_nk.shape)
    for length in np.unique(lengths):
        density = np.sqrt(variance_basis(np.arange(1, length + 1) / length) @ variance)
        law, here = density / np.cumsum(density)[-1], lengths == length
        index = np.searchsorted(np.cumsum(law), p_nk[here], side="right").clip(max=length - 1)
        counts[here], weights[here] = index + 1, 1.0 / (length * law[index])
    return counts, weights


def _systematic(n: int, forwards: int, seed: int) -> FloatArray:
    """p [n, k]: band b is the b-th k-th part of one systematic sample, in an order of its own.

    Each fold of the regression gets an even part of every band. With a plain random order, a fold
    with many high counts leaves few of them to fit on: few and scarce counts then bias the score.
    """
    offset = float(_random_words(seed, _OFFSET)[0] >> np.uint64(11)) * 2.0**-53
    p_kn = ((np.arange(n * forwards) + offset) / (n * forwards)).reshape(forwards, n)
    bands_k1, index_n = np.arange(forwards)[:, None], np.arange(n)
    words_kn = _random_words(seed, _ORDER, bands_k1, index_n)
    place_kn = _random_words(seed, _PLACE, bands_k1, index_n) * 2.0**-64
    for fold in range(FOLDS):
        words_km = words_kn[:, fold::FOLDS]
        place_kn[:, fold::FOLDS] += words_km.argsort(axis=1).argsort(axis=1)
        place_kn[:, fold::FOLDS] /= words_km.shape[1]
    order_kn = place_kn.argsort(axis=1).argsort(axis=1)
    return np.ascontiguousarray(np.take_along_axis(p_kn, order_kn, axis=1).T)


@dataclass(frozen=True, eq=False, kw_only=True)
class LMLPlan:
    """Mask counts, weights and masks of every forward of a study; make it with :meth:`make`.

    Two trials scored with plans of equal :attr:`hash` saw the same masks of the same positions.

    Example:
        >>> import tempfile, numpy as np
        >>> plan = LMLPlan.make(np.ones((100, 32), bool), forwards=2, seed=0)
        >>> plan.masks([0, 1], [0, 0]).sum(axis=1).tolist() == plan.counts_Nk[:2, 0].tolist()
        True
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plan.save(f"{folder}/plan.npz")
        ...     LMLPlan.load(f"{folder}/plan.npz").hash == plan.hash
        True
    """

    seed: int
    observed_ND: BoolArray
    """[N, D], positions masked and scored; False for padding, specials and missing values."""
    counts_Nk: IntArray
    """[N, k], mask count M of each forward, in 1..D_i; 0 in the rows of skipped sequences."""
    weights_Nk: FloatArray
    """[N, k], w = 1 / (D_i q_i(M)); 0 in the rows of skipped sequences."""
    groups_N: IntArray
    """[N], the group of each sequence (document, subject, site): errors are between groups."""

    def __post_init__(self) -> None:
        for array in (self.observed_ND, self.counts_Nk, self.weights_Nk, self.groups_N):
            array.setflags(write=False)

    @classmethod
    def make(
        cls,
        observed_ND: ArrayLike,
        *,
        forwards: int = 2,
        seed: int = 0,
        residual_variance: VarianceLaw = DEFAULT_VARIANCE,
        groups: ArrayLike | None = None,
    ) -> LMLPlan:
        """Draw a plan for the sequences of ``observed_ND`` [N, D], bool.

        ``forwards`` (k) is the number of model evaluations per sequence; an interval for this
        fixed held-out set needs at least 2. Sequences without an observed position are skipped.
        ``residual_variance`` fixes q(M); a pilot with another seed estimates it, see
        ``LMLEstimate.residual_variance``. Any positive law gives an unbiased score. ``groups`` [N]
        holds a label of each sequence; by default each is a group of its own. Masks do not depend
        on it.

        Raises ValueError for an array that is not two-dimensional, for ``forwards`` below 1, for
        a law that is not positive, for groups of another number, and where no sequence has an
        observed position.
        """
        observed = np.array(observed_ND, dtype=np.bool_)
        if observed.ndim != 2:
            raise ValueError(f"observed must be [N, D]; it has shape {observed.shape}")
        if forwards < 1:
            raise ValueError(f"forwards must be at least 1; it is {forwards}")
        if min(residual_variance) < 0 or not sum(residual_variance[:2]) > 0:
            raise ValueError(
                "residual_variance (a, b, c) must not be negative, and a + b must be positive; "
                f"it is {residual_variance}"
            )
        lengths = observed.sum(axis=1, dtype=np.int64)
        kept = np.flatnonzero(lengths)
        if not kept.size:
            raise ValueError(
                f"no position is observed in any of the {len(observed)} sequences: "
                "there is nothing to score"
            )
        counts = np.zeros((len(observed), forwards), np.int64)
        weights = np.zeros((len(observed), forwards))
        p_nk = _systematic(kept.size, forwards, seed)
        counts[kept], weights[kept] = _counts_and_weights(lengths[kept], p_nk, residual_variance)
        return cls(
            seed=seed,
            observed_ND=observed,
            counts_Nk=counts,
            weights_Nk=weights,
            groups_N=group_numbers(groups, len(observed)),
        )

    def at_rate(self, rate: float, *, seed: int) -> LMLPlan:
        """One forward per sequence at M = round(rate D_i), at least 1: for S at a single rate.

        Its weights are 1, so it is not a plan for the accumulated score. ``rate`` 0 is M = 1, the
        pseudo-log-likelihood's.
        """
        counts_N = np.clip(np.rint(rate * self.lengths).astype(np.int64), 1, None)
        counts_Nk = np.where(self.lengths > 0, counts_N, 0)[:, None]
        weights_Nk = (counts_Nk > 0).astype(np.float64)
        return replace(self, seed=seed, counts_Nk=counts_Nk, weights_Nk=weights_Nk)

    @property
    def forwards(self) -> int:
        """k, the forwards per sequence."""
        return int(self.counts_Nk.shape[1])

    @cached_property
    def lengths(self) -> IntArray:
        """D_i [N], the observed positions of each sequence."""
        return self.observed_ND.sum(axis=1, dtype=np.int64)

    @cached_property
    def kept(self) -> IntArray:
        """Indices [n] of the sequences that are scored."""
        return np.flatnonzero(self.lengths)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what fixes masks and weights: observed positions, but not groups."""
        digest = hashlib.sha256(f"{SCHEME}/{self.seed}/{self.observed_ND.shape}".encode())
        digest.update(np.packbits(self.observed_ND).tobytes())
        digest.update(self.counts_Nk.astype("<i8").tobytes())
        # Single precision: the last bits of a power differ between processors.
        digest.update(self.weights_Nk.astype("<f4").tobytes())
        return digest.hexdigest()

    def masks(self, rows: ArrayLike, bands: ArrayLike) -> BoolArray:
        """Masks [R, D], True where masked, of the forwards ``(rows[r], bands[r])``.

        A uniform subset of exact size M of the observed positions: those with the smallest words.
        """
        rows_R, bands_R = np.asarray(rows), np.asarray(bands)
        observed_RD = self.observed_ND[rows_R]
        words_RD = _random_words(
            self.seed, _MASK, rows_R[:, None], bands_R[:, None], np.arange(observed_RD.shape[1])
        )
        # Halving the words makes room for unobserved positions to sort last.
        words_RD = np.where(observed_RD, words_RD >> np.uint64(1), ~np.uint64(0))
        order_RD = np.argsort(words_RD, axis=1, kind="stable")
        chosen_RD = np.arange(order_RD.shape[1]) < self.counts_Nk[rows_R, bands_R][:, None]
        mask_RD: BoolArray = np.zeros_like(observed_RD)
        np.put_along_axis(mask_RD, order_RD, chosen_RD, axis=1)
        return mask_RD

    def steps(self, batch_size: int, world_size: int = 1) -> int:
        """Batches of the busiest rank. A rank may have one fewer, which matters for collectives."""
        share = -(-self.kept.size * self.forwards // world_size)
        return -(-share // batch_size)

    def batches(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield index arrays (rows, bands), each of at most ``batch_size`` forwards.

        Over all ranks every forward comes exactly once. Forwards are dealt to the ranks in order
        of their mask count, so batches hold similar counts and ranks get equal work.
        """
        if not (batch_size >= 1 and 0 <= rank < world_size):
            raise ValueError(
                "need batch_size >= 1 and 0 <= rank < world_size; "
                f"got batch_size={batch_size}, rank={rank}, world_size={world_size}"
            )
        order = np.argsort(self.counts_Nk[self.kept].ravel(), kind="stable")[rank::world_size]
        for start in range(0, order.size, batch_size):
            row, band = np.divmod(order[start : start + batch_size], self.forwards)
            yield self.kept[row], band

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to ``path`` (.npz), aside first and then moved into place."""
        with write_aside(Path(path)) as aside, aside.open("wb") as file:
            np.savez_compressed(
                file,
                seed=self.seed,
                observed=np.packbits(self.observed_ND),
                shape=self.observed_ND.shape,
                counts=self.counts_Nk,
                weights=self.weights_Nk,
                groups=self.groups_N,
                hash=self.hash,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LMLPlan:
        """Read a plan written by :meth:`save`; ValueError if its content and hash disagree."""
        with np.load(path, allow_pickle=False) as file:
            n, length = map(int, file["shape"])
            observed = np.unpackbits(file["observed"], count=n * length).astype(np.bool_)
            plan = cls(
                seed=int(file["seed"]),
                observed_ND=observed.reshape(n, length),
                counts_Nk=file["counts"],
                weights_Nk=file["weights"],
                groups_N=file["groups"],
            )
            if plan.hash != str(file["hash"]):
                raise ValueError(
                    f"{path}: the plan does not match the hash stored with it: it was changed "
                    "after it was written, or written by an incompatible version; make it again"
                )
        return plan
