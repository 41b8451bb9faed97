from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mptune.lml.plan import LMLPlan

observed_masks = arrays(
    bool, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.booleans()
).filter(np.any)
quick = settings(max_examples=60)


def forwards_of(plan):
    return np.repeat(plan.kept, plan.forwards), np.tile(np.arange(plan.forwards), plan.kept.size)


def full(n, length, **options):
    return LMLPlan.make(np.ones((n, length), bool), **options)


@quick
@given(observed_masks, st.integers(1, 3), st.integers(0, 2**64))
def test_masks_have_their_exact_size_within_the_observed_positions(observed, forwards, seed):
    plan = LMLPlan.make(observed, forwards=forwards, seed=seed)
    rows, bands = forwards_of(plan)
    masks = plan.masks(rows, bands)
    assert (masks.sum(axis=1) == plan.counts_Nk[rows, bands]).all()
    assert not (masks & ~observed[rows]).any()
    assert (plan.counts_Nk[plan.kept] >= 1).all()
    assert (plan.counts_Nk <= plan.lengths[:, None]).all()
    assert plan.kept.tolist() == np.flatnonzero(observed.any(axis=1)).tolist()


@quick
@given(observed_masks, st.integers(1, 3), st.integers(1, 7), st.integers(1, 5))
def test_ranks_share_every_forward_once(observed, forwards, batch_size, world_size):
    plan = LMLPlan.make(observed, forwards=forwards)
    seen, work, steps = [], [], []
    for rank in range(world_size):
        batches = list(plan.batches(batch_size, rank, world_size))
        assert all(rows.size <= batch_size for rows, _ in batches)
        steps.append(len(batches))
        work.append(sum(rows.size for rows, _ in batches))
        seen += [pair for rows, bands in batches for pair in zip(rows, bands, strict=True)]
    assert sorted(seen) == sorted(zip(*forwards_of(plan), strict=True))
    assert max(work) - min(work) <= 1
    assert max(steps) == plan.steps(batch_size, world_size)


def test_batches_hold_similar_mask_counts():
    plan = full(200, 64)
    widths = [np.ptp(plan.counts_Nk[rows, bands]) for rows, bands in plan.batches(20)]
    assert max(widths) <= 8


@quick
@given(observed_masks, st.randoms(use_true_random=False))
def test_masks_do_not_depend_on_the_batch(observed, random):
    plan = LMLPlan.make(observed, forwards=2, seed=5)
    rows, bands = forwards_of(plan)
    order = list(range(rows.size))
    random.shuffle(order)
    np.testing.assert_array_equal(
        plan.masks(rows, bands)[order], plan.masks(rows[order], bands[order])
    )


def test_padding_columns_change_no_mask():
    observed = np.arange(10) < np.array([[10], [3], [7]])
    wide = np.pad(observed, ((0, 0), (0, 6)))
    short, long = LMLPlan.make(observed, seed=1), LMLPlan.make(wide, seed=1)
    rows, bands = forwards_of(short)
    np.testing.assert_array_equal(short.counts_Nk, long.counts_Nk)
    np.testing.assert_array_equal(short.masks(rows, bands), long.masks(rows, bands)[:, :10])


@pytest.mark.parametrize("law", [(1.0, 0.25, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 5.0)])
def test_mask_counts_follow_their_law_systematically(law):
    plan = full(301, 12, forwards=3, residual_variance=law)
    expected = {m: np.sqrt(law[0] + law[1] * 12 / m + law[2] * (m / 12) ** 8) for m in range(1, 13)}
    total = sum(expected.values())
    for m, density in expected.items():
        here = plan.counts_Nk == m
        # One systematic sample misses the expected number in an interval by less than one.
        assert abs(here.sum() - 903 * density / total) < 1
        np.testing.assert_allclose(plan.weights_Nk[here], total / (12 * density), rtol=1e-12)


def test_bands_are_strata_in_an_order_of_their_own():
    plan = full(500, 100, forwards=4)
    assert (
        np.sort(plan.counts_Nk.max(axis=0))[:-1] <= np.sort(plan.counts_Nk.min(axis=0))[1:]
    ).all()
    ranks = plan.counts_Nk.argsort(axis=0, kind="stable").argsort(axis=0)
    assert abs(np.corrcoef(ranks.T) - np.eye(4)).max() < 4 / np.sqrt(500)


@pytest.mark.parametrize("n", [32, 30])
def test_every_fold_has_an_even_part_of_the_counts_and_every_row_all_of_them(n):
    """A fold of n / 4 rows has one from each of n / 4 runs of four counts, give or take one."""
    counts = np.array([full(n, 64, forwards=2, seed=s).counts_Nk for s in range(800)])
    ranks = counts.argsort(axis=1).argsort(axis=1)
    folds = [ranks[:, fold::4] for fold in range(4)]
    for fold in folds:
        expected = (np.arange(fold.shape[1]) + 0.5) * n / fold.shape[1]
        assert abs(np.sort(fold, axis=1) - expected[:, None] + 0.5).max() < 6
    # Standard error of a uniform rank's mean: n / sqrt(12 * 800).
    assert abs(ranks.mean(axis=0) - (n - 1) / 2).max() < 4 * n / np.sqrt(12 * 800)
    assert not np.array_equal(ranks[0].argsort(axis=0)[:, 0], ranks[0].argsort(axis=0)[:, 1])


def test_masks_are_uniform_over_subsets():
    plan = full(6000, 5, forwards=2, seed=9)
    rows, bands = forwards_of(plan)
    masks = plan.masks(rows, bands)
    for size in (1, 2, 3, 4):
        drawn = masks[plan.counts_Nk[rows, bands] == size]
        subsets = [np.isin(np.arange(5), s) for s in combinations(range(5), size)]
        counts = np.array([(drawn == subset).all(axis=1).sum() for subset in subsets])
        expected = len(drawn) / len(subsets)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # The 99.9 % points at 4 and 9 degrees of freedom.
        assert chi_square < {5: 18.5, 10: 27.9}[len(subsets)]


def test_masks_of_two_bands_and_of_neighbours_are_unrelated():
    plan = full(4000, 16, forwards=2, seed=2)
    rows = np.arange(4000)
    centred = [plan.masks(rows, np.full(4000, b)) - plan.counts_Nk[:, [b]] / 16 for b in range(2)]
    tolerance = 4 / np.sqrt(4000 * 16)
    spread = centred[0].std() * centred[1].std()
    assert abs((centred[0] * centred[1]).mean()) < tolerance * spread
    assert abs((centred[0][1:] * centred[0][:-1]).mean()) < tolerance * centred[0].var()


def test_hash_names_everything_that_matters():
    observed = np.ones((4, 6), bool)
    fewer = observed.copy()
    fewer[2, 3] = False
    plans = [
        LMLPlan.make(observed),
        LMLPlan.make(observed, seed=1),
        LMLPlan.make(observed, forwards=3),
        LMLPlan.make(fewer),
        LMLPlan.make(observed.reshape(6, 4)),
        LMLPlan.make(observed, residual_variance=(1.0, 0.0, 0.0)),
    ]
    assert len({plan.hash for plan in plans}) == len(plans)
    assert LMLPlan.make(observed).hash == plans[0].hash


def test_recipe_is_frozen():
    """A change here makes stored scores incomparable: raise SCHEME with it."""
    plan = LMLPlan.make(np.arange(9) < np.array([[9], [4], [0], [7]]), forwards=3, seed=11)
    rows, bands = forwards_of(plan)
    digest = sha256(np.packbits(plan.masks(rows, bands)).tobytes()).hexdigest()
    assert (plan.hash[:16], digest[:16]) == ("15b4dfd8cfa91115", "ac7583ac07ad33ca")


def test_save_and_load_round_trip(tmp_path):
    plan = LMLPlan.make(np.arange(9) < np.array([[9], [4], [0], [7]]), forwards=3, seed=2**63 + 5)
    plan.save(tmp_path / "plan.npz")
    again = LMLPlan.load(tmp_path / "plan.npz")
    rows, bands = forwards_of(plan)
    assert again.hash == plan.hash
    np.testing.assert_array_equal(again.masks(rows, bands), plan.masks(rows, bands))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]


def test_a_changed_file_is_refused(tmp_path):
    plan = full(3, 4)
    plan.save(tmp_path / "plan.npz")
    with np.load(tmp_path / "plan.npz") as file:
        content = dict(file)
    content["counts"] = content["counts"] % 4 + 1
    np.savez(tmp_path / "plan.npz", **content)
    with pytest.raises(ValueError, match="does not match the hash stored with it"):
        LMLPlan.load(tmp_path / "plan.npz")


def test_a_plan_cannot_be_changed():
    plan = full(3, 4)
    with pytest.raises(ValueError, match="read-only"):
        plan.counts_Nk[0, 0] = 2
    with pytest.raises(AttributeError):
        plan.seed = 3
    assert replace(plan, seed=3).hash != plan.hash


def test_sequences_without_an_observed_position_are_skipped():
    plan = LMLPlan.make([[True, True], [False, False], [False, True]])
    assert plan.kept.tolist() == [0, 2]
    assert plan.counts_Nk[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("observed", "options", "message"),
    [
        (np.zeros((3, 4), bool), {}, "no position is observed in any of the 3 sequences"),
        (np.zeros((0, 4), bool), {}, "no position is observed in any of the 0 sequences"),
        (np.ones(4, bool), {}, r"observed must be \[N, D\]; it has shape \(4,\)"),
        (np.ones((3, 4), bool), {"forwards": 0}, "forwards must be at least 1; it is 0"),
        (np.ones((3, 4), bool), {"residual_variance": (1.0, -1.0, 0.0)}, "must not be negative"),
        (np.ones((3, 4), bool), {"residual_variance": (0.0, 0.0, 1.0)}, "must be positive"),
    ],
)
def test_make_refuses(observed, options, message):
    with pytest.raises(ValueError, match=message):
        LMLPlan.make(observed, **options)


@pytest.mark.parametrize("arguments", [(0,), (1, 2, 2), (1, -1, 2)])
def test_batches_refuse(arguments):
    with pytest.raises(ValueError, match="need batch_size >= 1 and 0 <= rank < world_size"):
        next(full(3, 4).batches(*arguments))
