"""Hidden Markov model over discrete tokens: exact conditionals by forward-backward.

Notation: B sequences, D positions, S states, V symbols. A masked or missing position has
emission 1 in every state, so it is summed out (SCIENCE section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        log_norm_N: FloatArray = self._forward(self._evidence(np.asarray(tokens_ND)))[1]
        return log_norm_N

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
    drawn_n: IntArray = below_nV.sum(axis=1)
    return drawn_n
