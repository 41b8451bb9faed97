"""What every policy inherits: weights, omega, masks and corruption, with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.policies.base import draw_batch
from mptune.policies.distributions import Beta, Fixed, Uniform

LENGTHS = np.array([10, 10, 4])
COUNTS = np.array([5, 10, 1])


@pytest.mark.parametrize(
    ("reduction", "weights", "normaliser"),
    [
        ("seq_mean", [1 / 5, 1 / 10, 1], 3),
        ("token_mean", [1, 1, 1], 16),
        # q = 1/D for uniform counts, so 1 / (D M q) = 1 / M.
        ("elbo", [1 / 5, 1 / 10, 1], 3),
    ],
)
def test_weights_of_uniform(reduction, weights, normaliser):
    policy = Uniform(reduction=reduction)
    assert policy.weights(COUNTS, LENGTHS, 0.5) == pytest.approx(weights)
    assert policy.normaliser(COUNTS) == normaliser


def test_elbo_weights_divide_by_the_law():
    policy = Beta(a=2, b=1, reduction="elbo")  # F(r) = r^2, so q(M) = (2M - 1) / D^2
    expected = [100 / (10 * 5 * 9), 100 / (10 * 10 * 19), 16 / (4 * 1 * 1)]
    assert policy.weights(COUNTS, LENGTHS, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    "policy",
    [Uniform(), Uniform(reduction="elbo"), Beta(a=2, b=5, reduction="elbo")],
    ids=["uniform", "uniform-elbo", "beta-elbo"],
)
def test_omega_of_accumulated_training_is_constant(policy):
    assert policy.omega(16) == pytest.approx(np.full(16, 1 / 16))


def test_token_mean_overweights_high_rates():
    omega_M = Uniform(reduction="token_mean").omega(10)
    assert omega_M == pytest.approx(np.arange(1, 11) / 55)


def test_elbo_loss_is_an_unbiased_code_length_per_position():
    """Weighted losses of many batches average to the mean over M of S(M)."""
    policy, loss_M = Beta(a=3, b=2, reduction="elbo"), np.arange(1.0, 9.0)
    totals = []
    for step in range(600):
        made = draw_batch(
            policy,
            np.zeros((32, 8), int),
            np.ones((32, 8), bool),
            progress=0.0,
            seed=0,
            step=step,
            mask_id=1,
            vocabulary_size=1,
        )
        counts_B = made.mask_BD.sum(1)
        totals.append((made.weight_B * counts_B * loss_M[counts_B - 1]).sum() / made.normaliser)
    assert np.mean(totals) == pytest.approx(loss_M.mean(), abs=4 * np.std(totals) / np.sqrt(600))


def test_masks_are_uniform_over_subsets():
    observed_BD = np.tile([True, True, False, True, True], (6000, 1))
    mask_BD = Fixed(rate=0.5).draw_masks(observed_BD, np.full(6000, 2), np.random.default_rng(0))
    subsets, times = np.unique(mask_BD, axis=0, return_counts=True)
    assert len(subsets) == 6  # 4 choose 2
    assert ((times - 1000) ** 2 / 1000).sum() < 20.5  # chi-squared, 5 degrees, p = .001


def test_a_count_beyond_the_observed_positions_is_refused():
    with pytest.raises(ValueError, match="exceeds the sequence's observed positions"):
        Uniform().draw_masks(np.ones((1, 3), bool), np.array([4]), np.random.default_rng(0))


def test_bert_corruption_is_80_10_10():
    tokens_BD = np.zeros((400, 100), np.uint8)
    policy = Fixed(rate=0.5, corruption="bert")
    made = draw_batch(
        policy,
        tokens_BD,
        np.ones_like(tokens_BD, bool),
        progress=0.0,
        seed=0,
        step=0,
        mask_id=1000,
        vocabulary_size=1000,
    )
    masked = made.inputs_BD[made.mask_BD]
    assert (masked == 1000).mean() == pytest.approx(0.8, abs=0.01)
    assert (masked == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert len(np.unique(masked)) > 800


def test_small_dtypes_hold_the_mask_id():
    tokens_BD = np.full((2, 4), 255, np.uint8)
    made = draw_batch(
        Fixed(rate=1.0),
        tokens_BD,
        np.ones((2, 4), bool),
        progress=0.0,
        seed=0,
        step=0,
        mask_id=256,
        vocabulary_size=256,
    )
    assert (made.inputs_BD == 256).all()


def test_a_batch_with_nothing_observed_has_no_loss():
    made = draw_batch(
        Uniform(),
        np.zeros((2, 4), int),
        np.zeros((2, 4), bool),
        progress=0.0,
        seed=0,
        step=0,
        mask_id=5,
        vocabulary_size=5,
    )
    assert not made.mask_BD.any()
    assert made.weight_B.tolist() == [0, 0]
    assert made.normaliser == 1


def test_words_name_what_is_unusual():
    assert Uniform().words() == "uniform (accumulated)"
    assert Uniform(reduction="token_mean").words() == "uniform, token mean"
    assert Fixed(rate=0.4, corruption="bert").words() == "fixed 40 %, 80/10/10 corruption"
