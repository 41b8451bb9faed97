"""Stationary Markov chain over discrete tokens, whose entropy rate is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mptune.models.oracles.hmm import HMM, FloatArray


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

    def entropy_rate(self) -> float:
        """Nats per position as the length grows: -sum_s pi(s) sum_v P(s, v) log P(s, v)."""
        logs = np.log(np.where(self.transition_SS > 0, self.transition_SS, 1.0))
        return float(-(self.initial_S[:, None] * self.transition_SS * logs).sum())


def _stationary(transition_VV: FloatArray) -> FloatArray:
    """Solve pi P = pi, sum pi = 1."""
    size = len(transition_VV)
    equations = np.vstack([transition_VV.T - np.eye(size), np.ones(size)])
    solution: FloatArray = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    positive = solution.clip(min=0.0)
    stationary: FloatArray = positive / positive.sum()
    return stationary
