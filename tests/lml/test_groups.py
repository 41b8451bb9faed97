"""Errors of groups of sequences: against the definition, a simulation, and a brute jackknife."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.lml.groups import (
    MIN_GROUPS,
    group_numbers,
    group_scores,
    group_standard_error,
    intraclass_correlation,
    round_robin,
)

RNG = np.random.default_rng(0)
SIZES = np.array([1, 2, 3, 5, 8, 13, 21, 4, 4])
GROUPS = RNG.permutation(np.repeat(list("ihgfedcba"), SIZES))
VALUES = (
    RNG.normal(size=len(GROUPS)) + RNG.normal(size=9)[np.unique(GROUPS, return_inverse=True)[1]]
)


def jackknife(values, sizes):
    """Standard error of the ratio, from the ratio without each group in turn."""
    left_out = [values[g != GROUPS].sum() / sizes[g != GROUPS].sum() for g in np.unique(GROUPS)]
    centred = np.array(left_out) - values.sum() / sizes.sum()
    return np.sqrt(8 / 9 * (centred**2).sum())


def test_the_error_is_that_of_leaving_out_one_group_at_a_time():
    lengths = RNG.integers(1, 30, len(VALUES)).astype(float)
    assert group_standard_error(VALUES, GROUPS)[0] == pytest.approx(
        jackknife(VALUES, np.ones(len(VALUES)))
    )
    totals = VALUES * lengths
    found = group_standard_error(totals, GROUPS, lengths)[0]
    assert found == pytest.approx(jackknife(totals, lengths))


def test_degrees_of_freedom_are_those_of_a_quadratic_form():
    """(tr P)² / tr P² of the scaled residual totals, values of equal variance, by matrices."""
    n = len(GROUPS)
    member_Gn = (np.unique(GROUPS)[:, None] == GROUPS).astype(float)
    scale = 1 / np.sqrt(1 - member_Gn.sum(1) / n)
    form = scale[:, None] * member_Gn @ (np.eye(n) - 1 / n)
    spread = form @ form.T
    expected = np.trace(spread) ** 2 / np.trace(spread @ spread)
    assert group_standard_error(VALUES, GROUPS)[1] == pytest.approx(expected)
    assert expected < 6
    assert group_standard_error(VALUES[:40], np.arange(40) // 4)[1] == pytest.approx(9)


def test_sequences_of_their_own_have_the_plain_error():
    error, df = group_standard_error(VALUES, np.arange(len(VALUES)))
    assert error == pytest.approx(VALUES.std(ddof=1) / np.sqrt(len(VALUES)))
    assert df == pytest.approx(len(VALUES) - 1)
    assert np.isnan(group_standard_error(VALUES, np.zeros(len(VALUES)))).all()


def test_group_scores_are_as_good_as_independent_values():
    for shift in (0.0, 1e6):
        scores = group_scores(np.stack([VALUES + shift, -2 * VALUES]), GROUPS)
        assert scores.shape == (2, 9)
        assert scores.mean(1) == pytest.approx([VALUES.mean() + shift, -2 * VALUES.mean()])
        error = scores[0].std(ddof=1) / 3
        assert 0.9 < error / group_standard_error(VALUES, GROUPS)[0] <= 1
    equal = group_scores(VALUES[:60], np.arange(60) % 6)
    assert equal == pytest.approx(VALUES[:60].reshape(10, 6).mean(0))
    assert group_scores(VALUES, np.zeros(len(VALUES))) == pytest.approx([VALUES.mean()])


def test_intraclass_correlation_of_a_known_bed():
    groups = np.repeat(np.arange(4000), RNG.integers(1, 9, 4000))
    values = 0.5 * RNG.normal(size=4000)[groups] + np.sqrt(0.75) * RNG.normal(size=len(groups))
    assert intraclass_correlation(values, groups) == pytest.approx(0.25, abs=0.03)
    assert intraclass_correlation(RNG.normal(size=len(groups)), groups) == pytest.approx(
        0, abs=0.03
    )
    assert np.isnan(intraclass_correlation(values, np.arange(len(values))))
    assert np.isnan(intraclass_correlation(values, np.zeros(len(values))))


def test_round_robin_takes_one_of_each_group_before_a_second_of_any():
    groups = np.repeat(np.arange(5), [1, 30, 2, 100, 7])
    order = np.random.default_rng(1).permutation(140)
    found = round_robin(order, groups)
    assert sorted(found) == list(range(140))
    assert [len(set(groups[found[:n]])) for n in (1, 3, 5, 9)] == [1, 3, 5, 5]
    assert np.bincount(groups[found[:18]]).tolist() == [1, 5, 2, 5, 5]
    for group in range(5):
        assert [r for r in found if groups[r] == group] == [r for r in order if groups[r] == group]


def test_round_robin_does_not_favour_large_groups():
    groups = np.repeat([0, 1], [50, 1])
    first = [
        groups[round_robin(np.random.default_rng(s).permutation(51), groups)[0]] for s in range(200)
    ]
    assert 70 < sum(first) < 130
    some = np.random.default_rng(0).permutation(np.arange(40, 51))
    assert sorted(round_robin(some, groups)) == list(range(40, 51))


@pytest.mark.parametrize("labels", [[1.0, np.nan, np.nan], ["a", None, None]])
def test_missing_labels_are_refused(labels):
    with pytest.raises(ValueError, match="2 of 3 sequences have no group"):
        group_numbers(labels, 3)


def test_labels_become_numbers_and_their_number_is_checked():
    assert group_numbers(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    assert group_numbers(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="one label for each of the 4 sequences; it has shape"):
        group_numbers(["b", "a", "b"], 4)


@pytest.mark.parametrize("lognormal", [0.0, 1.0])
@pytest.mark.parametrize("count", [10, 40])
def test_intervals_cover_the_population_of_groups(count, lognormal):
    """Random group effects of ICC 0.25; the row error covers half as often as it claims."""
    from scipy.special import stdtrit

    rng, replications = np.random.default_rng(count), 800
    hits = plain = 0
    for _ in range(replications):
        sizes = np.maximum(1, 20 * np.exp(lognormal * rng.normal(size=count))).astype(int)
        groups = np.repeat(np.arange(count), sizes)
        values = 0.5 * rng.normal(size=count)[groups] + 0.75**0.5 * rng.normal(size=len(groups))
        error, df = group_standard_error(values, groups)
        hits += abs(values.mean()) <= error * stdtrit(df, 0.975)
        plain += abs(values.mean()) <= 1.96 * values.std() / len(values) ** 0.5
    assert 0.92 < hits / replications < 0.98
    assert plain / replications < 0.7
    assert MIN_GROUPS == 8
