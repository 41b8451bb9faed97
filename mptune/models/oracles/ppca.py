"""Probabilistic PCA: x ~ N(mean, W W^T + noise_variance I), with closed-form conditionals.

Notation: B sequences, D positions, Q latent dimensions (Tipping & Bishop 1999).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class PPCA:
    """In ``tokens`` (real values) NaN is missing and is integrated out."""

    def __init__(
        self, loadings_DQ: ArrayLike, noise_variance: float, mean_D: ArrayLike | None = None
    ) -> None:
        self.loadings_DQ = np.asarray(loadings_DQ, np.float64)
        self.noise_variance = noise_variance
        self.length = len(self.loadings_DQ)
        self.mean_D = np.zeros(self.length) if mean_D is None else np.asarray(mean_D, np.float64)
        self._outer_DQQ = np.einsum("dq,dr->dqr", self.loadings_DQ, self.loadings_DQ)

    @classmethod
    def random(
        cls, *, length: int = 128, latent: int = 4, noise_variance: float = 0.2, seed: int = 0
    ) -> PPCA:
        """Standard normal loadings."""
        rng = np.random.default_rng(seed)
        return cls(rng.standard_normal((length, latent)), noise_variance)

    def sample(self, n: int, seed: int) -> FloatArray:
        """Draw ``n`` sequences [n, D]."""
        rng = np.random.default_rng(seed)
        latent_nQ = rng.standard_normal((n, self.loadings_DQ.shape[1]))
        noise_nD = rng.standard_normal((n, self.length)) * np.sqrt(self.noise_variance)
        values_nD: FloatArray = self.mean_D + latent_nQ @ self.loadings_DQ.T + noise_nD
        return values_nD

    def log_prob(self, tokens_BD: ArrayLike, mask_BD: ArrayLike) -> FloatArray:
        """log p(x_j | unmasked) [B, D], a density in nats, at the masked positions, 0 elsewhere."""
        values, mask = np.asarray(tokens_BD, np.float64), np.asarray(mask_BD, np.bool_)
        residual_BD, missing_BD = self._residual(values)
        seen_BD = ~(mask | missing_BD)
        covariance_BQQ = np.linalg.inv(self._precision(seen_BD))
        score_BQ = (residual_BD * seen_BD) @ self.loadings_DQ / self.noise_variance
        latent_BQ = np.einsum("bqr,br->bq", covariance_BQQ, score_BQ)
        variance_BD = self.noise_variance + np.einsum(
            "bqr,dqr->bd", covariance_BQQ, self._outer_DQQ, optimize=True
        )
        square_BD = (residual_BD - latent_BQ @ self.loadings_DQ.T) ** 2 / variance_BD
        log_density_BD = -0.5 * (square_BD + np.log(2 * np.pi * variance_BD))
        return np.where(mask & ~missing_BD, log_density_BD, 0.0)

    def log_marginal(self, tokens_ND: ArrayLike) -> FloatArray:
        """log p(observed values) [N], a density in nats, by the matrix determinant lemma."""
        residual_ND, missing_ND = self._residual(np.asarray(tokens_ND, np.float64))
        precision_NQQ = self._precision(~missing_ND)
        score_NQ = residual_ND @ self.loadings_DQ / self.noise_variance
        latent_NQ = np.linalg.solve(precision_NQQ, score_NQ[:, :, None])[:, :, 0]
        square_N = (residual_ND**2).sum(axis=1) / self.noise_variance
        square_N -= (score_NQ * latent_NQ).sum(axis=1)
        log_norm = np.log(2 * np.pi * self.noise_variance)
        log_volume_N = (~missing_ND).sum(axis=1) * log_norm + np.linalg.slogdet(precision_NQQ)[1]
        log_density_N: FloatArray = -0.5 * (square_N + log_volume_N)
        return log_density_N

    def _residual(self, values_BD: FloatArray) -> tuple[FloatArray, BoolArray]:
        """x - mean, 0 where missing; and where it is missing."""
        missing_BD = np.isnan(values_BD)
        return np.where(missing_BD, 0.0, values_BD - self.mean_D), missing_BD

    def _precision(self, seen_BD: BoolArray) -> FloatArray:
        """Posterior precision of the latents [B, Q, Q] given the seen positions."""
        gram_BQQ = np.tensordot(seen_BD.astype(np.float64), self._outer_DQQ, axes=1)
        precision: FloatArray = np.eye(gram_BQQ.shape[1]) + gram_BQQ / self.noise_variance
        return precision
