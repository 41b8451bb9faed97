"""The founding paper's figures are reproduced to their digits, by an estimator without bias."""

from __future__ import annotations

import numpy as np

from benchmarks.founding import (
    FIGURES,
    MASK_SEEDS,
    FoundingEstimator,
    expected_rate_bias,
    founding_data,
)
from mptune.models.oracles import PPCA


def test_bias_of_one_rate_in_two_dimensions() -> None:
    """By hand: with correlation r, M = 1 gains -(1/2) log(1 - r^2), and M = 2 loses the same."""
    gain = -0.5 * np.log(1 - 0.6**2)
    bias = expected_rate_bias(np.array([[1.0, 0.6], [0.6, 1.0]]))
    np.testing.assert_allclose(bias, [gain, -gain], rtol=1e-12)


def test_principal_sequences_stand_for_all() -> None:
    ppca = PPCA.random(length=12, latent=3, seed=1)
    tokens = ppca.sample(50, seed=2)
    masks = np.random.default_rng(3).random((9, 12)) < 0.5
    masks[0] = True
    masks[1:, 0] = True
    expected = [ppca.log_prob(tokens, np.tile(mask, (50, 1)))[:, mask].mean() for mask in masks]
    np.testing.assert_allclose(FoundingEstimator(ppca, tokens).score(masks), expected, rtol=1e-10)


def test_the_founding_estimator_has_no_bias() -> None:
    ppca = PPCA.random(length=8, latent=2, seed=1)
    tokens = ppca.sample(50, seed=2)
    founding = FoundingEstimator(ppca, tokens)
    found = [founding.estimate(2, seed) for seed in range(400)]
    error = np.mean(found) - ppca.log_marginal(tokens).mean()
    assert abs(error) < 3.5 * np.std(found) / 20


def test_founding_figures_to_their_digits() -> None:
    ppca, tokens = founding_data()
    assert abs(ppca.log_marginal(tokens).mean() + 60.3436) < 5e-5
    founding = FoundingEstimator(ppca, tokens)
    for permutations in (1, 10):
        found = [founding.estimate(permutations, seed) for seed in MASK_SEEDS]
        mean, sd = FIGURES[permutations]
        # The founding code works in single precision.
        assert abs(np.mean(found) - mean) < 1e-3
        assert abs(np.std(found, ddof=1) - sd) < 1.5e-3


def test_founding_noise_is_one_number_a_sequence() -> None:
    ppca, tokens = founding_data()
    residual = tokens - tokens @ np.linalg.pinv(ppca.loadings_DQ.T) @ ppca.loadings_DQ.T
    assert np.linalg.matrix_rank(residual, tol=1e-6) == 1
