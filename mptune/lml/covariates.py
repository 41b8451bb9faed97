"""Cheap guesses of log p(x_j), whose masked sums are control variates of the score.

A guess u_j depends on the sequence but never on the mask, so under a uniform mask of size M

    c = (D/M) sum_{j in mask} u_j - sum_j u_j      has      E[c | x, M] = 0   exactly.

A poor guess costs precision, never correctness. It may even be fitted on the scored sequences.

Shape suffixes: _ND sequences x positions, _NDC x covariates. V is the vocabulary size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.lml._files import save_npz

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

_PSEUDO_COUNT = 5.0


class Covariates(Protocol):
    """Whatever guesses log p(x_j) position by position, in nats."""

    def position_features(self, tokens_ND: ArrayLike, observed_ND: ArrayLike) -> FloatArray:
        """C finite guesses per position [N, D, C]; values where not observed are ignored."""
        ...


@dataclass(frozen=True, eq=False)
class _CountTable:
    """How often each token followed each context, as sorted codes ``context * base + token``."""

    base: int
    codes: IntArray
    counts: IntArray

    @classmethod
    def fit(cls, context: IntArray, token: IntArray, base: int) -> _CountTable:
        codes, counts = np.unique(context * base + token, return_counts=True)
        return cls(base, codes, counts)

    @cached_property
    def cumulative(self) -> IntArray:
        """Counts below each code; one more entry than codes."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def probability(self, context: IntArray, token: IntArray, prior: FloatArray) -> FloatArray:
        """p(token | context), shrunk to ``prior`` by a Dirichlet pseudo-count."""
        code = (context * self.base + token).ravel()
        # Looked up in order, which a table larger than the processor's cache rewards fivefold.
        order = np.argsort(code)
        joint, total = np.empty_like(code), np.empty_like(code)
        joint[order], total[order] = self._joint_and_total(code[order])
        share = (joint + _PSEUDO_COUNT * prior.ravel()) / (total + _PSEUDO_COUNT)
        return share.reshape(context.shape)

    def _joint_and_total(self, code: IntArray) -> tuple[IntArray, IntArray]:
        """How often each code, and any code of its context, was counted."""
        context = code // self.base * self.base
        edges = np.stack([code, code + 1, context, context + self.base])
        below = self.cumulative[np.searchsorted(self.codes, edges)]
        return below[1] - below[0], below[3] - below[2]


@dataclass(frozen=True, eq=False)
class TokenCovariates:
    """Three guesses from counts of training tokens, shrunk along the list:

    log p(x_j); log p(x_j | x_{j-1}) + log p(x_j | x_{j+1}) - log p(x_j), a naive Bayes score; and
    log p(x_j | x_{j-1}, x_{j+1}). Unobserved neighbours and both ends count as one extra symbol.
    """

    vocabulary_size: int
    unigram: FloatArray
    """Smoothed p of each token [V]."""
    left: _CountTable
    right: _CountTable
    both: _CountTable

    @classmethod
    def fit(
        cls, train_tokens: ArrayLike, train_observed: ArrayLike | None, vocabulary_size: int
    ) -> TokenCovariates:
        """Count ``train_tokens`` [N, D], ids in 0..V-1 where ``train_observed`` [N, D] is True.

        Raises ValueError for an observed id outside the vocabulary.
        """
        if not 1 <= vocabulary_size < 2**20:
            raise ValueError(f"vocabulary_size must be in 1..2**20-1; it is {vocabulary_size}")
        token, left, right, here = _neighbourhood(train_tokens, train_observed, vocabulary_size)
        token, left, right = token[here], left[here], right[here]
        unigram = np.bincount(token, minlength=vocabulary_size) + 0.5
        base = vocabulary_size + 1
        return cls(
            vocabulary_size,
            unigram / unigram.sum(),
            _CountTable.fit(left, token, base),
            _CountTable.fit(right, token, base),
            _CountTable.fit(left * base + right, token, base),
        )

    def position_features(
        self, tokens_ND: ArrayLike, observed_ND: ArrayLike | None = None
    ) -> FloatArray:
        """The three guesses [N, D, 3], nats; 0 where not observed."""
        token, left, right, here = _neighbourhood(tokens_ND, observed_ND, self.vocabulary_size)
        unigram = self.unigram[np.where(here, token, 0)]
        from_left = self.left.probability(left, token, unigram)
        from_right = self.right.probability(right, token, unigram)
        context = left * (self.vocabulary_size + 1) + right
        from_both = self.both.probability(context, token, (from_left + from_right) / 2)
        stacked = np.stack([unigram, from_left * from_right / unigram, from_both], axis=-1)
        return np.log(np.where(here[..., None], stacked, 1.0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (.npz), aside first and then moved into place."""
        arrays: dict[str, Any] = {"unigram": self.unigram}
        for name in ("left", "right", "both"):
            table: _CountTable = getattr(self, name)
            arrays |= {f"{name}_codes": table.codes, f"{name}_counts": table.counts}
        save_npz(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenCovariates:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            unigram = file["unigram"]
            tables = [
                _CountTable(unigram.size + 1, file[f"{name}_codes"], file[f"{name}_counts"])
                for name in ("left", "right", "both")
            ]
        return cls(unigram.size, unigram, *tables)


def _neighbourhood(
    tokens_ND: ArrayLike, observed_ND: ArrayLike | None, vocabulary_size: int
) -> tuple[IntArray, IntArray, IntArray, BoolArray]:
    """Tokens, left and right neighbours [N, D], V standing for "none"; and what is observed."""
    tokens = np.asarray(tokens_ND)
    observed = np.ones(tokens.shape, np.bool_) if observed_ND is None else np.asarray(observed_ND)
    bad = observed & ((tokens < 0) | (tokens >= vocabulary_size))
    if bad.any():
        row, position = np.argwhere(bad)[0]
        raise ValueError(
            f"token {tokens[row, position]} of sequence {row}, position {position} is outside the "
            f"vocabulary 0..{vocabulary_size - 1}; mark it unobserved or raise vocabulary_size"
        )
    padded = np.pad(
        np.where(observed, tokens, vocabulary_size).astype(np.int64),
        ((0, 0), (1, 1)),
        constant_values=vocabulary_size,
    )
    return padded[:, 1:-1], padded[:, :-2], padded[:, 2:], observed.astype(np.bool_)


@dataclass(frozen=True, eq=False)
class GaussianCovariates:
    """For real values: log density of each position alone, and given all others, if normal."""

    mean: FloatArray
    """[D]"""
    covariance: FloatArray
    """[D, D]"""

    @classmethod
    def fit(cls, train_values: ArrayLike, shrinkage: float = 0.01) -> GaussianCovariates:
        """Moments of complete ``train_values`` [N, D]; the covariance shrunk to its diagonal."""
        values = np.asarray(train_values, np.float64)
        covariance = np.cov(values, rowvar=False).reshape(values.shape[1], -1)
        diagonal = np.diag(np.diag(covariance))
        return cls(values.mean(axis=0), (1 - shrinkage) * covariance + shrinkage * diagonal)

    def position_features(
        self, tokens_ND: ArrayLike, observed_ND: ArrayLike | None = None
    ) -> FloatArray:
        """The two guesses [N, D, 2], nats; unobserved values stand at their mean."""
        residual = np.asarray(tokens_ND, np.float64) - self.mean
        if observed_ND is not None:
            residual = np.where(np.asarray(observed_ND), residual, 0.0)
        precision = np.linalg.inv(self.covariance)
        conditional = residual @ precision / np.diag(precision)
        return np.stack(
            [
                _log_normal(residual, np.diag(self.covariance)),
                _log_normal(conditional, 1 / np.diag(precision)),
            ],
            axis=-1,
        )


def _log_normal(residual: FloatArray, variance: FloatArray) -> FloatArray:
    """Log density of a centred normal."""
    return -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))
