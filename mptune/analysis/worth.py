"""What more training runs are worth: the knowledge gradient of a joint normal belief.

    theta ~ N(m, S)                            true scores of A candidates
    gain_a(n) = E max_b (m_b + s_b Z) - max_b m_b        s_b = S_ab / sqrt(S_aa + noise_a / n)

is by how much n runs of candidate a improve the score of the one that is then chosen (Frazier,
Powell and Dayanik 2008, doi 10.1137/070693424). One run alone may change no choice, although
several do, so gains are to be compared per run at several n (Frazier and Powell 2010, doi
10.1287/deca.1100.0188).
"""

from __future__ import annotations

import numpy as np

from mptune.analysis.crossed import Array

RUNS = (1, 2, 4, 8, 16)
"""Numbers of runs whose gain is computed."""

NODES = 64
"""Of the integral over Z, in the middles of equal shares of probability."""


def expected_gains(mean_A: Array, covariance_AA: Array, noise_A: Array) -> Array:
    """Expected gain of each number of `RUNS` of each candidate, [len(RUNS), A].

    Args:
        noise_A: variance of one run of each candidate around its true score.
    """
    from scipy.special import ndtri

    Z = ndtri((np.arange(NODES) + 0.5) / NODES)
    gains = []
    for runs in RUNS:
        se_A = np.sqrt(covariance_AA.diagonal() + noise_A / runs)
        step_AA = covariance_AA / np.maximum(se_A, 1e-300)
        best_AZ = (mean_A[:, None, None] + step_AA[:, :, None] * Z).max(0)
        gains.append(best_AZ.mean(1) - mean_A.max())
    return np.maximum(gains, 0.0)
