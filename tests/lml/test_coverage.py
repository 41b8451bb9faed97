"""Intervals cover what they claim to, and the estimator is worth its forwards."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.lml.covariates import GaussianCovariates, TokenCovariates
from mptune.lml.estimator import estimate_lml, masked_sums
from mptune.lml.plan import LMLPlan
from mptune.models.oracles import HMM, PPCA
from tests.simulations import FULL, repetitions

REPLICATIONS = repetitions(100, 400)
# Three binomial standard deviations about 0.95.
TOLERANCE = 3 * np.sqrt(0.95 * 0.05 / REPLICATIONS)

BEDS = {
    "hmm": HMM.random(states=4, vocabulary_size=6, length=16, seed=1),
    "ppca": PPCA.random(length=20, latent=2, noise_variance=0.3, seed=1),
}


def covariates_of(oracle):
    train = oracle.sample(1000, seed=10**6)
    if isinstance(oracle, PPCA):
        return GaussianCovariates.fit(train)
    return TokenCovariates.fit(train, None, oracle.emission_SV.shape[1])


def coverage(oracle, truth, tokens_of, kind):
    covariates, hits = covariates_of(oracle), 0
    for seed in range(REPLICATIONS):
        estimate = estimate_lml(
            oracle.log_prob, tokens_of(seed), seed=seed, batch_size=256, covariates=covariates
        )
        low, high = estimate.interval(kind=kind)
        hits += low <= truth <= high
    return hits / REPLICATIONS


@pytest.mark.simulation
@pytest.mark.parametrize("bed", BEDS)
def test_fixed_set_intervals_cover(bed):
    oracle = BEDS[bed]
    tokens = oracle.sample(120, seed=7)
    truth = oracle.log_marginal(tokens).mean()
    assert abs(coverage(oracle, truth, lambda _: tokens, "fixed") - 0.95) < TOLERANCE


@pytest.mark.simulation
@pytest.mark.parametrize("bed", BEDS)
def test_population_intervals_cover(bed):
    oracle = BEDS[bed]
    truth = oracle.log_marginal(oracle.sample(100_000, seed=10**7)).mean()
    rate = coverage(oracle, truth, lambda seed: oracle.sample(120, seed=seed), "population")
    assert abs(rate - 0.95) < TOLERANCE


def naive_mean(oracle, tokens, forwards, rng):
    """M uniform and independent, (D/M) sum over the mask of log p, averaged."""
    table = np.repeat(tokens, forwards, axis=0)
    count = rng.integers(1, table.shape[1] + 1, len(table))
    mask = rng.random(table.shape).argsort(axis=1).argsort(axis=1) < count[:, None]
    scores = table.shape[1] / count * masked_sums(oracle.log_prob(table, mask), mask)
    return scores.mean()


@pytest.mark.simulation
@pytest.mark.parametrize(("forwards", "at_least"), [(1, 4.0), (4, 5.0)])
@pytest.mark.parametrize(
    "oracle",
    [
        HMM.random(states=8, vocabulary_size=16, length=64, seed=1),
        PPCA.random(length=128, latent=4, noise_variance=0.2, seed=1),
    ],
    ids=["hmm", "ppca"],
)
def test_one_forward_is_worth_several_naive_ones(oracle, forwards, at_least):
    tokens, covariates = oracle.sample(512 // forwards, seed=3), covariates_of(oracle)
    truth, rng = oracle.log_marginal(tokens).mean(), np.random.default_rng(0)
    times = repetitions(60, 150)
    naive = [naive_mean(oracle, tokens, forwards, rng) - truth for _ in range(times)]
    ours = [
        estimate_lml(
            oracle.log_prob,
            tokens,
            plan=LMLPlan.make(np.ones(tokens.shape, bool), forwards=forwards, seed=seed),
            batch_size=256,
            covariates=covariates,
        ).nats_per_sequence
        - truth
        for seed in range(times)
    ]
    ratio = np.mean(np.square(naive)) / np.mean(np.square(ours))
    assert ratio > at_least * (1 if FULL else 0.75)  # few repetitions: known to about a quarter
    assert abs(np.mean(ours)) < 3.5 * np.std(ours) / np.sqrt(times)
