"""Every policy that is found, with its example parameters, against its own pmf."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chi2

from mptune import plugins
from mptune.policies.base import RATE_BUCKETS, LossByRate, MaskPolicy, draw_batch
from mptune.spec.schema import build

CASES = [
    pytest.param(policy, id=f"{name}-{i}")
    for name in plugins.modules("policies")
    for i, policy in enumerate(plugins.load("policies", name).examples())
]
ONE_PER_LAW = [
    pytest.param(plugins.load("policies", name).examples()[0], id=name)
    for name in plugins.modules("policies")
]
SEED = 20260


STRUCTURES = [
    "token",
    "span",
    {"kind": "span", "p": 0.5, "longest": 3},
    "whole_word",
    {"kind": "block", "columns": 6, "height": 2, "width": 4},
]


def words_like(observed_BD):
    """Words of three positions."""
    return np.broadcast_to(np.arange(observed_BD.shape[1]) // 3, observed_BD.shape)


def batch(policy, tokens_BD, observed_BD, step=3, progress=0.4, seed=SEED, words_BD=None):
    return draw_batch(
        policy,
        tokens_BD,
        observed_BD,
        progress=progress,
        seed=seed,
        step=step,
        mask_id=50,
        vocabulary_size=50,
        words_BD=words_BD,
    )


def ragged(sequences=40, length=24):
    """Tokens, and observed masks of every size from 0 up, scattered over the positions."""
    rng = np.random.default_rng(1)
    tokens_BD = rng.integers(50, size=(sequences, length)).astype(np.uint8)
    observed_BD = rng.random((sequences, length)) < np.linspace(0, 1, sequences)[:, None]
    return tokens_BD, observed_BD


def chi_squared_p(counts_B, q_M):
    """p-value of the counts under q, with cells of little mass pooled; outside q it is 0."""
    seen = np.bincount(counts_B, minlength=len(q_M) + 1)[1:]
    if seen[q_M == 0].any():
        return 0.0
    order = np.argsort(q_M)
    cells = np.floor(np.cumsum(q_M[order]) * len(counts_B) / 10).astype(int)
    expected = np.bincount(cells, q_M[order]) * len(counts_B)
    found = np.bincount(cells, seen[order])
    keep = expected > 0
    statistic = ((found - expected)[keep] ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, max(keep.sum() - 1, 1)))


@pytest.mark.parametrize("policy", CASES)
class TestPolicy:
    def test_pmf_is_a_law_of_counts(self, policy: MaskPolicy):
        for length, progress in product([1, 2, 7, 128], [0.0, 0.5, 1.0]):
            q_M = policy.pmf(length, progress)
            assert q_M.dtype == np.float64
            assert q_M.shape == (length,)
            assert (q_M >= 0).all()
            assert q_M.sum() == pytest.approx(1, abs=1e-12)
            assert (policy.support(length, progress) == (q_M > 0)).all()

    def test_single_draws_follow_the_pmf(self, policy: MaskPolicy):
        rng = np.random.default_rng(SEED)
        one = np.array([20])
        counts = np.concatenate([policy.draw_counts(one, 0.4, rng) for _ in range(3000)])
        assert chi_squared_p(counts, policy.pmf(20, 0.4)) > 1e-3

    def test_a_batch_covers_the_pmf_evenly(self, policy: MaskPolicy):
        """Systematic draws: each cumulative frequency is within one draw of the law's."""
        counts = policy.draw_counts(np.full(500, 20), 0.4, np.random.default_rng(SEED))
        below = np.cumsum(np.bincount(counts, minlength=21)[1:])
        assert np.abs(below - 500 * np.cumsum(policy.pmf(20, 0.4))).max() <= 1 + 1e-9

    def test_a_sequence_of_a_batch_follows_the_pmf_alone(self, policy: MaskPolicy):
        """The first row of many batches: systematic draws are not tied to the row."""
        rng = np.random.default_rng(SEED)
        lengths = np.array([20, 20, 5, 20])
        counts = np.array([policy.draw_counts(lengths, 0.4, rng)[0] for _ in range(2000)])
        assert chi_squared_p(counts, policy.pmf(20, 0.4)) > 1e-3

    def test_counts_are_exact_and_only_observed_positions_are_masked(self, policy: MaskPolicy):
        _, observed_BD = ragged()
        rng = np.random.default_rng(SEED)
        counts_B = policy.draw_counts(observed_BD.sum(1), 0.4, rng)
        mask_BD = policy.draw_masks(observed_BD, counts_B, rng)
        assert (mask_BD.sum(1) == counts_B).all()
        assert not (mask_BD & ~observed_BD).any()
        assert ((counts_B >= 1) == observed_BD.any(1)).all()

    def test_only_masked_inputs_change(self, policy: MaskPolicy):
        tokens_BD, observed_BD = ragged()
        made = batch(policy, tokens_BD, observed_BD)
        assert (made.inputs_BD == tokens_BD)[~made.mask_BD].all()
        masked = made.inputs_BD[made.mask_BD]
        if policy.corruption == "mask":
            assert (masked == 50).all()
        elif policy.corruption == "swap":
            assert (masked < 50).all()
            assert (masked != tokens_BD[made.mask_BD]).mean() > 0.5
        else:
            assert 0.6 < (masked == 50).mean() < 0.95
            assert masked.max() == 50

    def test_same_seed_and_step_same_batch(self, policy: MaskPolicy):
        tokens_BD, observed_BD = ragged()
        first, again = (batch(policy, tokens_BD, observed_BD) for _ in range(2))
        assert (first.inputs_BD == again.inputs_BD).all()
        assert (first.weight_B == again.weight_B).all()
        if policy.pmf(20, 0.4)[-1] < 1:
            for other in ({"seed": SEED + 1}, {"step": 4}):
                assert (
                    batch(policy, tokens_BD, observed_BD, **other).mask_BD != first.mask_BD
                ).any()

    @pytest.mark.parametrize("workers", [2, 4])
    def test_workers_losses_add_up_to_the_global_loss(self, policy: MaskPolicy, workers):
        tokens_BD, observed_BD = ragged()
        losses_BD = np.random.default_rng(2).random(tokens_BD.shape)

        def loss(made, rows=slice(None)):
            terms_B = made.weight_B * (losses_BD * made.mask_BD).sum(1)
            return terms_B[rows].sum() / made.normaliser

        made = batch(policy, tokens_BD, observed_BD)
        share = len(tokens_BD) // workers
        parts = [
            loss(batch(policy, tokens_BD, observed_BD), slice(k * share, (k + 1) * share))
            for k in range(workers)
        ]
        assert sum(parts) == pytest.approx(loss(made), rel=1e-12)
        assert made.normaliser >= 1
        assert np.isfinite(made.weight_B).all()
        assert (made.weight_B[observed_BD.any(1)] > 0).all()
        assert (made.weight_B[~observed_BD.any(1)] == 0).all()

    def test_a_run_that_is_resumed_draws_the_same_stream(self, policy: MaskPolicy):
        """Any step can be drawn by a fresh object, from the policy's JSON, in any order."""
        tokens_BD, observed_BD = ragged(sequences=8)
        whole = [batch(policy, tokens_BD, observed_BD, step=s, progress=s / 8) for s in range(8)]
        again = build("policy", json.loads(policy.model_dump_json()))
        for step in (7, 4, 5, 6):
            made = batch(again, tokens_BD, observed_BD, step=step, progress=step / 8)
            assert (made.mask_BD == whole[step].mask_BD).all()
            assert (made.inputs_BD == whole[step].inputs_BD).all()

    def test_what_is_learned_is_a_policy_with_a_fixed_law(self, policy: MaskPolicy):
        rng = np.random.default_rng(SEED)
        sums_3R = np.array([np.full(RATE_BUCKETS, 10.0), rng.random(RATE_BUCKETS) * 10, [20] * 10])
        learned = policy.learn(LossByRate.of_sums(sums_3R))
        assert learned.relearn_every is None
        assert (policy.relearn_every is None) == (learned == policy)
        assert learned.pmf(24, 0.4).sum() == pytest.approx(1)
        assert build("policy", json.loads(learned.model_dump_json())) == learned
        kept = ("reduction", "corruption", "structure")
        assert all(getattr(learned, name) == getattr(policy, name) for name in kept)

    def test_omega_is_the_weight_of_each_count_in_the_expected_loss(self, policy: MaskPolicy):
        """Monte Carlo over batches whose loss is a known function of M, against omega."""
        length, batches = 12, 400
        observed_BD = np.ones((32, length), bool)
        mean_loss_M = np.linspace(1, 4, length) ** 2
        total = 0.0
        for step in range(batches):
            made = batch(
                policy,
                np.zeros((32, length), int),
                observed_BD,
                step=step,
                progress=(step + 0.5) / batches,
            )
            counts_B = made.mask_BD.sum(1)
            total += (made.weight_B * counts_B * mean_loss_M[counts_B - 1]).sum() / made.normaliser
        assert total / batches == pytest.approx(policy.omega(length) @ mean_loss_M, rel=0.02)

    def test_mean_rate_is_the_mean_of_the_draws(self, policy: MaskPolicy):
        rng = np.random.default_rng(SEED)
        lengths_B = np.full(50, 40)
        rates = [policy.draw_counts(lengths_B, (s + 0.5) / 64, rng).mean() / 40 for s in range(64)]
        assert policy.mean_rate(40) == pytest.approx(np.mean(rates), rel=0.02)

    def test_json_round_trip(self, policy: MaskPolicy):
        again = build("policy", json.loads(policy.model_dump_json()))
        assert again == policy
        assert (again.pmf(9, 0.3) == policy.pmf(9, 0.3)).all()
        assert build("policy", policy.model_dump()) == policy

    def test_says_what_it_is(self, policy: MaskPolicy):
        assert policy.words()
        assert "Source:" in (type(policy).__doc__ or "")
        undescribed = [n for n, f in type(policy).model_fields.items() if not f.description]
        assert undescribed == ["kind"]

    def test_is_named_like_its_file_and_refuses_unknown_keys(self, policy: MaskPolicy):
        assert plugins.load("policies", policy.kind) is type(policy)
        with pytest.raises(ValidationError, match="nonsense"):
            build("policy", {**policy.model_dump(), "nonsense": 1})


@pytest.mark.parametrize("policy", ONE_PER_LAW)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_counts_are_exact_whatever_the_structure(policy: MaskPolicy, structure):
    """The counts that token masks would have, of whole units but for one."""
    policy = build("policy", {**policy.model_dump(), "structure": structure})
    _, observed_BD = ragged()
    counts_B = policy.draw_counts(observed_BD.sum(1), 0.4, np.random.default_rng(SEED))
    words_BD = words_like(observed_BD)
    rng = np.random.default_rng(SEED)
    mask_BD = policy.draw_masks(observed_BD, counts_B, rng, words_BD)
    assert (mask_BD.sum(1) == counts_B).all()
    assert not (mask_BD & ~observed_BD).any()
    units_BD = policy.structure.units(observed_BD.shape, np.random.default_rng(SEED), words_BD)
    for mask_D, observed_D, unit_D in zip(
        mask_BD, observed_BD, units_BD if units_BD is not None else [], strict=False
    ):
        cut = [u for u in np.unique(unit_D[mask_D]) if not mask_D[(unit_D == u) & observed_D].all()]
        assert len(cut) <= 1


@pytest.mark.parametrize("place", range(len(STRUCTURES)))
@pytest.mark.parametrize("law", range(len(ONE_PER_LAW)), ids=[law.id for law in ONE_PER_LAW])
def test_corruption_and_structure_change_no_count(law, place):
    """Every law with each structure, every structure with each corruption."""
    (policy,), structure = ONE_PER_LAW[law].values, STRUCTURES[place]
    corruption = ("mask", "bert", "swap")[(law + place) % 3]
    tokens_BD, observed_BD = ragged()
    changes = {"corruption": corruption, "structure": structure}
    changed = build("policy", {**policy.model_dump(), **changes})
    words_BD = words_like(observed_BD)
    made = batch(changed, tokens_BD, observed_BD, words_BD=words_BD)
    counts_B = batch(policy, tokens_BD, observed_BD).mask_BD.sum(1)
    assert (made.mask_BD.sum(1) == counts_B).all()
    assert not (made.mask_BD & ~observed_BD).any()
    assert (made.inputs_BD == tokens_BD)[~made.mask_BD].all()
    shown = (made.inputs_BD[made.mask_BD] < 50).mean()
    low, high = {"mask": (0, 0), "bert": (0.05, 0.4), "swap": (1, 1)}[corruption]
    assert low <= shown <= high
