"""A small discrete joint distribution, everything by enumeration.

Notation: B sequences, D positions, V symbols, K = V^D outcomes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Joint:
    """p(x) as a table with one axis per position; a negative token is missing and summed out."""

    def __init__(self, table: ArrayLike) -> None:
        """``table`` [V, ..., V] with D axes: non-negative, normalised here."""
        weights = np.asarray(table, np.float64)
        self.length = weights.ndim
        self.probability_K = weights.ravel() / weights.sum()
        self.outcomes_KD: IntArray = np.indices(weights.shape).reshape(self.length, -1).T

    @classmethod
    def random(cls, *, length: int = 5, vocabulary_size: int = 3, seed: int = 0) -> Joint:
        """Outcome probabilities drawn from the flat Dirichlet."""
        rng = np.random.default_rng(seed)
        return cls(rng.exponential(size=(vocabulary_size,) * length))

    def sample(self, n: int, seed: int) -> IntArray:
        """Draw ``n`` sequences, tokens [n, D]."""
        rng = np.random.default_rng(seed)
        drawn: IntArray = self.outcomes_KD[
            rng.choice(self.probability_K.size, n, p=self.probability_K)
        ]
        return drawn

    def log_prob(self, tokens_BD: ArrayLike, mask_BD: ArrayLike) -> FloatArray:
        """log p(x_j | unmasked) [B, D] in nats at the masked positions, 0 elsewhere."""
        tokens, mask = np.asarray(tokens_BD), np.asarray(mask_BD, np.bool_)
        agrees_BKD = tokens[:, None, :] == self.outcomes_KD[None]
        hidden_BD = mask | (tokens < 0)
        weight_BK = self._weights(agrees_BKD | hidden_BD[:, None, :])
        hit_BD = np.einsum("bk,bkd->bd", weight_BK, agrees_BKD)
        probability_BD = hit_BD / weight_BK.sum(axis=1, keepdims=True)
        return np.log(np.where(mask & (tokens >= 0), probability_BD, 1.0))

    def log_marginal(self, tokens_ND: ArrayLike) -> FloatArray:
        """log p(observed tokens) [N] in nats."""
        tokens = np.asarray(tokens_ND)[:, None, :]
        total_N = self._weights((tokens == self.outcomes_KD) | (tokens < 0)).sum(axis=1)
        log_marginal_N: FloatArray = np.log(total_N)
        return log_marginal_N

    def _weights(self, consistent_BKD: NDArray[np.bool_]) -> FloatArray:
        """p of each outcome that agrees with the evidence, else 0 [B, K]."""
        weight_BK: FloatArray = consistent_BKD.all(axis=2) * self.probability_K
        return weight_BK
