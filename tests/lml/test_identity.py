"""Proposition 1 of arXiv 2306.00520 by enumeration, and the oracles against each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mptune.models.oracles import HMM, PPCA, Joint, MarkovChain


def masks_of_size(positions, size, length):
    chosen = list(combinations(positions, size))
    mask = np.zeros((len(chosen), length), bool)
    for row, subset in zip(mask, chosen, strict=True):
        row[list(subset)] = True
    return mask


def accumulated(oracle, tokens, observed):
    """Sum over M of S(M) over every mask of the observed positions of one sequence."""
    positions, total = np.flatnonzero(observed), 0.0
    for size in range(1, positions.size + 1):
        mask = masks_of_size(positions, size, tokens.size)
        values = oracle.log_prob(np.tile(tokens, (len(mask), 1)), mask)
        total += np.where(mask, values, 0.0).sum(axis=1).mean() / size
    return total


def all_outcomes(vocabulary_size, length):
    return np.indices((vocabulary_size,) * length).reshape(length, -1).T


def as_joint(oracle, vocabulary_size):
    table = np.exp(oracle.log_marginal(all_outcomes(vocabulary_size, oracle.length)))
    assert table.sum() == pytest.approx(1.0, abs=1e-12)
    return Joint(table.reshape((vocabulary_size,) * oracle.length))


@pytest.mark.parametrize(("length", "vocabulary_size"), [(1, 2), (2, 4), (5, 3)])
def test_accumulated_score_is_log_marginal(length, vocabulary_size):
    joint = Joint.random(length=length, vocabulary_size=vocabulary_size, seed=3)
    outcomes = all_outcomes(vocabulary_size, length)[::7]
    scores = [accumulated(joint, x, np.ones(length, bool)) for x in outcomes]
    np.testing.assert_allclose(scores, joint.log_marginal(outcomes), rtol=0, atol=1e-12)


def test_accumulated_score_of_observed_positions_is_their_log_marginal():
    joint = Joint.random(length=5, vocabulary_size=3, seed=3)
    x = np.array([1, -1, 0, 2, -1])
    score = accumulated(joint, x, x >= 0)
    np.testing.assert_allclose(score, joint.log_marginal(x[None])[0], rtol=0, atol=1e-12)


def test_fixed_rate_is_biased_upwards_at_low_rates():
    joint = Joint.random(length=5, vocabulary_size=3, seed=3)
    x = joint.sample(200, seed=0)
    low = [5 * joint.log_prob(np.tile(row, (5, 1)), np.eye(5, dtype=bool)).sum() / 5 for row in x]
    assert np.mean(low) > joint.log_marginal(x).mean() + 0.01


@pytest.mark.parametrize(
    "oracle",
    [
        HMM.random(states=3, vocabulary_size=3, length=5, concentration=1.0, seed=1),
        MarkovChain.random_chain(vocabulary_size=3, length=5, seed=1),
    ],
    ids=["hmm", "markov"],
)
def test_chain_conditionals_are_those_of_the_enumerated_joint(oracle):
    joint, rng = as_joint(oracle, 3), np.random.default_rng(0)
    tokens = oracle.sample(100, seed=2)
    tokens[rng.random(tokens.shape) < 0.15] = -1
    mask = rng.random(tokens.shape) < 0.5
    expected = joint.log_prob(tokens, mask)
    np.testing.assert_allclose(oracle.log_prob(tokens, mask), expected, atol=1e-12)
    np.testing.assert_allclose(oracle.log_marginal(tokens), joint.log_marginal(tokens), atol=1e-12)
    assert (expected < 0).any()
    assert (expected[~mask | (tokens < 0)] == 0).all()


def test_ppca_conditionals_are_those_of_the_dense_gaussian():
    ppca = PPCA(np.random.default_rng(0).standard_normal((4, 2)), 0.3, mean_D=[1.0, 0.0, -2.0, 3.0])
    covariance = ppca.loadings_DQ @ ppca.loadings_DQ.T + 0.3 * np.eye(4)
    x = ppca.sample(1, seed=5)
    seen, target = [0, 3], 1
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen, target])
    mean = ppca.mean_D[target] + (x[0, seen] - ppca.mean_D[seen]) @ gain
    variance = covariance[target, target] - covariance[target, seen] @ gain
    expected = -0.5 * ((x[0, target] - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    missing = np.where([False, False, True, False], np.nan, x)
    mask = np.array([[False, True, False, False]])
    assert ppca.log_prob(missing, mask)[0, target] == pytest.approx(expected, abs=1e-12)


def test_ppca_accumulates_to_its_log_marginal():
    ppca = PPCA.random(length=6, latent=2, seed=2)
    x = ppca.sample(1, seed=3)[0]
    score = accumulated(ppca, x, np.ones(6, bool))
    assert score == pytest.approx(ppca.log_marginal(x[None])[0], abs=1e-12)
    x[2] = np.nan
    score = accumulated(ppca, x, ~np.isnan(x))
    assert score == pytest.approx(ppca.log_marginal(x[None])[0], abs=1e-12)


@pytest.mark.parametrize(
    "oracle",
    [
        HMM.random(states=3, vocabulary_size=3, length=3, seed=1),
        Joint.random(length=3, vocabulary_size=3, seed=2),
    ],
    ids=["hmm", "joint"],
)
def test_samples_follow_the_law(oracle):
    n = 20_000
    outcomes = all_outcomes(3, 3)
    counts = (oracle.sample(n, seed=4)[:, None] == outcomes).all(axis=2).sum(axis=0)
    probability = np.exp(oracle.log_marginal(outcomes))
    spread = np.sqrt(n * probability * (1 - probability)) + 1.0
    assert (np.abs(counts - n * probability) < 4.5 * spread).all()


def test_markov_chain_scores_at_its_entropy_rate():
    chain = MarkovChain.random_chain(vocabulary_size=4, length=400, seed=6)
    per_position = -chain.log_marginal(chain.sample(200, seed=7)).mean() / 400
    # -sum_s pi(s) sum_v P(s, v) log P(s, v)
    law = chain.transition_SS
    rate = -(chain.initial_S[:, None] * law * np.log(law)).sum()
    assert per_position == pytest.approx(rate, rel=0.01)
