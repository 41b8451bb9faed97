"""Families whose log p(x) and conditionals are known exactly, to test scores on.

Each has ``sample(n, seed) -> tokens [n, D]``, ``log_prob(tokens_BD, mask_BD) -> [B, D]`` (log p of
the true value at masked positions given the unmasked ones, nats) and ``log_marginal(tokens_ND) ->
[N]`` (nats per sequence). Missing values are negative tokens, or NaN for real values; they are
summed or integrated out.

Notation: B sequences, D positions, S states, V symbols, K = V^D outcomes, Q latent dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class HMM:
    """A time-homogeneous HMM; in ``tokens`` a negative value is missing and is summed out."""

    def __init__(
        self, initial_S: ArrayLike, transition_SS: ArrayLike, emission_SV: ArrayLike, length: int
    ) -> None:
        """Probabilities; each row sums to 1. ``length`` is D, the positions that `sample` draws."""
        self.initial_S = np.asarray(initial_S, np.float64)
        self.transition_SS = np.asarray(transition_SS, np.float64)
        self.emission_SV = np.asarray(emission_SV, np.float64)
        self.length = length

    @classmethod
    def random(
        cls,
        *,
        states: int = 8,
        vocabulary_size: int = 16,
        length: int = 64,
        concentration: float = 0.2,
        seed: int = 0,
    ) -> HMM:
        """Rows drawn from a symmetric Dirichlet; a small ``concentration`` gives peaked rows."""
        rng = np.random.default_rng(seed)
        return cls(
            rng.dirichlet(np.ones(states)),
            rng.dirichlet(np.full(states, concentration), states),
            rng.dirichlet(np.full(vocabulary_size, concentration), states),
            length,
        )

    def sample(self, n: int, seed: int) -> IntArray:
        """Draw ``n`` sequences, tokens [n, D]."""
        rng = np.random.default_rng(seed)
        state_n = _draw(np.broadcast_to(self.initial_S, (n, self.initial_S.size)), rng)
        tokens_nD = np.empty((n, self.length), np.int64)
        for j in range(self.length):
            tokens_nD[:, j] = _draw(self.emission_SV[state_n], rng)
            state_n = _draw(self.transition_SS[state_n], rng)
        return tokens_nD

    def log_prob(self, tokens_BD: ArrayLike, mask_BD: ArrayLike) -> FloatArray:
        """log p(x_j | unmasked) [B, D] in nats at the masked positions, 0 elsewhere."""
        tokens, mask = np.asarray(tokens_BD), np.asarray(mask_BD, np.bool_)
        scored_BD = mask & (tokens >= 0)
        evidence_DBS = self._evidence(np.where(mask, -1, tokens))
        posterior_DBS = self._forward(evidence_DBS)[0] * self._backward(evidence_DBS)
        posterior_DBS /= posterior_DBS.sum(axis=2, keepdims=True)
        emission_DBS = self.emission_SV.T[np.where(scored_BD, tokens, 0).T]
        probability_BD = np.einsum("dbs,dbs->bd", posterior_DBS, emission_DBS)
        return np.log(np.where(scored_BD, probability_BD, 1.0))

    def log_marginal(self, tokens_ND: ArrayLike) -> FloatArray:
        """log p(observed tokens) [N] in nats."""
        return self._forward(self._evidence(np.asarray(tokens_ND)))[1]

    def _evidence(self, tokens_BD: IntArray) -> FloatArray:
        """p(x_j | state) [D, B, S], 1 where the token is negative."""
        likelihood_DBS = self.emission_SV.T[np.maximum(tokens_BD, 0).T]
        return np.where((tokens_BD >= 0).T[:, :, None], likelihood_DBS, 1.0)

    def _forward(self, evidence_DBS: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Filtered state probabilities [D, B, S] and log p [B]."""
        alpha_DBS, log_norm_B = np.empty_like(evidence_DBS), np.zeros(evidence_DBS.shape[1])
        prior_BS = np.broadcast_to(self.initial_S, evidence_DBS.shape[1:])
        for j, evidence_BS in enumerate(evidence_DBS):
            joint_BS = prior_BS * evidence_BS
            norm_B = joint_BS.sum(axis=1)
            alpha_DBS[j] = joint_BS / norm_B[:, None]
            log_norm_B += np.log(norm_B)
            prior_BS = alpha_DBS[j] @ self.transition_SS
        return alpha_DBS, log_norm_B

    def _backward(self, evidence_DBS: FloatArray) -> FloatArray:
        """p(later evidence | state) [D, B, S], each row up to a factor."""
        beta_DBS = np.ones_like(evidence_DBS)
        for j in range(len(evidence_DBS) - 2, -1, -1):
            beta_BS = (beta_DBS[j + 1] * evidence_DBS[j + 1]) @ self.transition_SS.T
            beta_DBS[j] = beta_BS / beta_BS.sum(axis=1, keepdims=True)
        return beta_DBS


def _draw(probability_nV: FloatArray, rng: np.random.Generator) -> IntArray:
    """One categorical draw per row by inversion."""
    below_nV = probability_nV.cumsum(axis=1)[:, :-1] <= rng.random((len(probability_nV), 1))
    return below_nV.sum(axis=1)


class MarkovChain(HMM):
    """The HMM whose state is its token, started from its stationary law."""

    def __init__(self, transition_VV: ArrayLike, length: int) -> None:
        """Rows of ``transition_VV`` sum to 1; the chain must have one stationary law."""
        transition = np.asarray(transition_VV, np.float64)
        super().__init__(_stationary(transition), transition, np.eye(len(transition)), length)

    @classmethod
    def random_chain(
        cls,
        *,
        vocabulary_size: int = 8,
        length: int = 64,
        concentration: float = 0.5,
        seed: int = 0,
    ) -> MarkovChain:
        """Transition rows drawn from a symmetric Dirichlet."""
        rng = np.random.default_rng(seed)
        rows = rng.dirichlet(np.full(vocabulary_size, concentration), vocabulary_size)
        return cls(rows, length)


def _stationary(transition_VV: FloatArray) -> FloatArray:
    """Solve pi P = pi, sum pi = 1."""
    size = len(transition_VV)
    equations = np.vstack([transition_VV.T - np.eye(size), np.ones(size)])
    solution: FloatArray = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    positive = solution.clip(min=0.0)
    return positive / positive.sum()


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
        return self.outcomes_KD[rng.choice(self.probability_K.size, n, p=self.probability_K)]

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
        return np.log(total_N)

    def _weights(self, consistent_BKD: NDArray[np.bool_]) -> FloatArray:
        """p of each outcome that agrees with the evidence, else 0 [B, K]."""
        return consistent_BKD.all(axis=2) * self.probability_K


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
        return self.mean_D + latent_nQ @ self.loadings_DQ.T + noise_nD

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
        return -0.5 * (square_N + log_volume_N)

    def _residual(self, values_BD: FloatArray) -> tuple[FloatArray, BoolArray]:
        """x - mean, 0 where missing; and where it is missing."""
        missing_BD = np.isnan(values_BD)
        return np.where(missing_BD, 0.0, values_BD - self.mean_D), missing_BD

    def _precision(self, seen_BD: BoolArray) -> FloatArray:
        """Posterior precision of the latents [B, Q, Q] given the seen positions."""
        gram_BQQ = np.tensordot(seen_BD.astype(np.float64), self._outer_DQQ, axes=1)
        return np.eye(gram_BQQ.shape[1]) + gram_BQQ / self.noise_variance
