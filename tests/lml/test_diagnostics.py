"""The order gap is zero for one joint distribution, and single rates are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.lml.adaptive import Side
from mptune.lml.diagnostics import order_gap, score_at_rate
from mptune.lml.estimator import estimate_lml
from mptune.lml.plan import LMLPlan
from mptune.models.oracles import HMM, PPCA, Joint

HMM_12 = HMM.random(states=3, vocabulary_size=4, length=12, seed=1)


def test_one_joint_distribution_has_no_order_gap():
    tokens = HMM_12.sample(50, seed=2)
    observed = np.random.default_rng(0).random(tokens.shape) < 0.7
    shown = np.where(observed, tokens, -1)
    gap = order_gap(Side.of(HMM_12.log_prob, shown, observed), pairs=200)
    assert gap.pairs == 200
    assert np.abs(gap.gap_n).max() < 1e-10


def test_conditionals_of_two_models_do_not_fit_together():
    """What is known half of the time by one model and half by another has a gap, by hand."""
    tokens = np.zeros((40, 2), int)

    def log_prob(tokens_BD, mask_BD):
        alone = mask_BD.sum(axis=1, keepdims=True) == 1
        return np.where(alone, [[-0.5, -0.2]], [[-1.0, -1.0]]) + np.zeros(tokens_BD.shape)

    gap = order_gap(Side.of(log_prob, tokens), pairs=64)
    np.testing.assert_allclose(np.abs(gap.gap_n), 0.3)
    assert gap.rms == pytest.approx(0.3)
    assert gap.se == pytest.approx(0.0, abs=1e-9)


def test_a_single_position_has_no_order():
    with pytest.raises(ValueError, match="no sequence has two observed positions"):
        order_gap(Side.of(HMM_12.log_prob, np.zeros((4, 1), int)))


def test_score_at_one_position_is_the_pseudo_log_likelihood():
    joint = Joint.random(length=5, vocabulary_size=3, seed=1)
    tokens = np.repeat(joint.sample(1, seed=3), 4000, axis=0)
    each = np.eye(5, dtype=bool)
    exact = joint.log_prob(tokens[:5], each)[each].mean()
    found = score_at_rate(Side.of(joint.log_prob, tokens), 0.0)
    assert found.forwards == 4000
    assert abs(found.nats_per_position - exact) < 4 * found.se


def test_low_rates_flatter_and_the_curve_says_by_how_much():
    ppca = PPCA.random(length=20, latent=3, seed=1)
    tokens = ppca.sample(1500, seed=2)
    estimate = estimate_lml(ppca.log_prob, tokens, forwards=4, batch_size=1024)
    at_15 = score_at_rate(Side.of(ppca.log_prob, tokens), 0.15)
    exact = at_15.nats_per_position - ppca.log_marginal(tokens).mean() / 20
    curve = estimate.curve
    bias = np.interp(0.15, curve.mask_rate, curve.smooth) - estimate.nats_per_position
    assert exact > 0.05
    assert bias == pytest.approx(exact, abs=0.05)
    assert estimate.curve.variance_share.sum() == pytest.approx(1.0)


def test_expectation_does_not_depend_on_the_order_of_the_columns():
    tokens = HMM_12.sample(60, seed=2)
    order = np.random.default_rng(0).permutation(12)

    def shuffled(tokens_BD, mask_BD):
        out = np.empty(tokens_BD.shape)
        straight, mask = np.empty_like(tokens_BD), np.empty_like(mask_BD)
        straight[:, order], mask[:, order] = tokens_BD, mask_BD
        out[:] = HMM_12.log_prob(straight, mask)[:, order]
        return out

    pairs = [
        (
            estimate_lml(HMM_12.log_prob, tokens, seed=s, batch_size=256).nats_per_sequence,
            estimate_lml(shuffled, tokens[:, order], seed=s, batch_size=256).nats_per_sequence,
        )
        for s in range(100)
    ]
    difference = np.subtract(*np.transpose(pairs))
    assert abs(difference.mean()) < 3.5 * difference.std() / 10
    assert difference.std() > 0


@pytest.mark.parametrize(("rate", "counts"), [(0.0, [1, 1, 0]), (0.5, [2, 1, 0]), (1.0, [4, 2, 0])])
def test_a_plan_at_one_rate_has_exact_counts(rate, counts):
    observed = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    plan = LMLPlan.make(observed, forwards=3).at_rate(rate, seed=9)
    assert plan.counts_Nk[:, 0].tolist() == counts
    assert plan.weights_Nk[:, 0].tolist() == [1, 1, 0]
    assert plan.masks([0, 1], [0, 0]).sum(axis=1).tolist() == counts[:2]
