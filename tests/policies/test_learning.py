"""Laws that are learned from losses: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.policies.base import RATE_BUCKETS, LossByRate, rate_bucket
from mptune.spec.schema import build


def losses(mean_R, variance_R, count=100.0):
    count_R = np.full(RATE_BUCKETS, count)
    return LossByRate(count_R, np.asarray(mean_R, float), np.asarray(variance_R, float))


def test_losses_of_sums():
    y = np.array([1.0, 2.0, 4.0])
    sums_3R = np.zeros((3, RATE_BUCKETS))
    sums_3R[:, 2] = len(y), y.sum(), (y**2).sum()
    found = LossByRate.of_sums(sums_3R)
    assert found.mean[2] == pytest.approx(y.mean())
    assert found.variance[2] == pytest.approx(y.var())
    assert found.variance[3] == 0


def test_rate_buckets_are_closed_above():
    counts_B, lengths_B = np.array([1, 2, 3, 10, 20, 0]), np.array([20, 20, 20, 20, 20, 0])
    assert rate_bucket(counts_B, lengths_B).tolist() == [0, 0, 1, 4, 9, 0]


def test_adaptive_draws_in_proportion_to_the_spread():
    spread_R = np.arange(1.0, 11.0)
    policy = build("policy", {"kind": "adaptive", "explore": 0.2, "reduction": "elbo"})
    learned = policy.learn(losses(np.ones(10), spread_R**2))
    expected = 0.02 + 0.8 * spread_R / spread_R.sum()
    assert learned.pmf(10, 0.0) == pytest.approx(expected, abs=1e-4)
    assert learned.omega(10) == pytest.approx(np.full(10, 0.1))


def test_adaptive_is_uniform_until_it_has_seen_something():
    policy = build("policy", {"kind": "adaptive"})
    learned = policy.learn(losses(np.zeros(10), np.zeros(10), 0.0))
    assert learned.pmf(24, 0.0) == pytest.approx(policy.pmf(24, 0.0))


def test_clipped_takes_the_bounds_of_least_variance():
    variance_R = [9, 9, 1, 1, 1, 1, 1, 9, 9, 9]
    policy = build("policy", {"kind": "clipped", "explore": 0.1})
    q_M = policy.learn(losses(np.ones(10), variance_R)).pmf(10, 0.0)
    assert q_M == pytest.approx([0.01] * 2 + [0.19] * 5 + [0.01] * 3)


def test_clipped_counts_the_change_of_the_mean():
    policy = build("policy", {"kind": "clipped", "narrowest": 0.3})
    q_M = policy.learn(losses([0, 5, 10, 10, 10, 15, 20, 25, 30, 35], np.ones(10))).pmf(10, 0.0)
    assert (np.flatnonzero(q_M > 0.1) == [2, 3, 4]).all()


@pytest.mark.parametrize("kind", ["linear", "step", "mixture"])
def test_policies_made_of_others_let_them_learn(kind):
    part = {"kind": "adaptive", "every": 0.1}
    given = {
        "linear": {"start": part, "end": part},
        "step": {"stages": [{"at": 0, "policy": 0.15}, {"at": 0.5, "policy": part}]},
        "mixture": {"components": [{"weight": 1, "policy": part}]},
    }[kind]
    policy = build("policy", {"kind": kind, **given})
    assert policy.relearn_every == 0.1
    learned = policy.learn(losses(np.ones(10), np.arange(10)))
    assert learned.relearn_every is None
    assert learned.pmf(10, 0.9)[9] > policy.pmf(10, 0.9)[9]
