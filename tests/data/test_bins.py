"""Binned values: the density is one, scores approach true entropies, quantiles are exact."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.data._bins import OTHER, Bins, Categories, column

RNG = np.random.default_rng


def density(bins: Bins, probability: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The model's density of values without atoms."""
    return probability[bins.symbols(values)] * np.exp(-bins.log_widths(values))


@pytest.mark.parametrize("size", [2, 5, 32])
@pytest.mark.parametrize("standardised", [False, True])
def test_densities_integrate_to_one(size, standardised):
    bins = Bins.fit(RNG(0).normal(3, 2, 500), size, standardised)
    probability = RNG(1).dirichlet(np.ones(bins.size))
    grid = np.linspace(-200, 200, 2_000_001)
    unit = bins.scale if standardised else 1.0
    mass = density(bins, probability, grid).sum() * (grid[1] - grid[0]) / unit
    assert mass == pytest.approx(1, abs=1e-3)


def test_atoms_and_bins_together_integrate_to_one():
    rain = np.where(RNG(0).random(1000) < 0.7, 0.0, RNG(1).exponential(2, 1000))
    bins = Bins.fit(rain, 16)
    assert bins.atoms.tolist() == [0.0]
    assert bins.log_widths(np.array([0.0])) == 0
    probability = RNG(2).dirichlet(np.ones(bins.size))
    grid = np.linspace(-100, 200, 3_000_001) + 1e-7
    smooth = density(bins, probability, grid).sum() * (grid[1] - grid[0])
    assert smooth + probability[-1] == pytest.approx(1, abs=1e-3)


def test_the_score_of_a_gaussian_approaches_its_entropy_as_bins_refine():
    train, test = RNG(0).normal(size=200_000), RNG(1).normal(size=200_000)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    gaps = []
    for size in (4, 16, 64, 256):
        bins = Bins.fit(train, size)
        probability = np.bincount(bins.symbols(train), minlength=bins.size) / len(train)
        score = np.mean(np.log(probability[bins.symbols(test)]) - bins.log_widths(test))
        gaps.append(-score - entropy)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert abs(gaps[-1]) < 0.01


def test_values_beyond_the_range_cost_in_proportion_to_their_distance():
    bins = Bins.fit(np.arange(100.0), 10)
    near, far = bins.log_widths(np.array([120.0, 220.0]))
    assert bins.symbols(np.array([-50.0, 220.0])).tolist() == [0, 9]
    assert far - near == pytest.approx(100 / (99 - np.quantile(np.arange(100.0), 0.9)))


def test_few_distinct_values_are_single_symbols_and_new_ones_unknown():
    bins = Bins.fit(np.repeat([1.0, 2.0, 5.0], 10), 8)
    assert (bins.intervals, bins.size) == (0, 3)
    assert bins.symbols(np.array([1.0, 5.0, 3.0, np.nan])).tolist() == [0, 2, -1, -1]


def test_equal_counts_per_bin():
    values = RNG(0).normal(size=1000)
    assert np.bincount(Bins.fit(values, 10).symbols(values)).tolist() == [100] * 10


@pytest.mark.parametrize("level", [0.0, 0.05, 0.3, 0.5, 0.95, 1.0])
def test_quantiles_are_those_of_many_draws(level):
    rain = np.where(RNG(0).random(1000) < 0.4, 0.0, RNG(1).exponential(2, 1000))
    bins = Bins.fit(rain, 8)
    probability = RNG(2).dirichlet(np.ones(bins.size))
    symbols = RNG(3).choice(bins.size, 400_000, p=probability)
    drawn = bins.draw(symbols, RNG(4))
    assert (bins.symbols(drawn) == symbols).mean() > 0.999
    assert bins.quantile(probability, level) == pytest.approx(np.quantile(drawn, level), abs=0.05)


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.7, 30.0])
def test_the_crps_is_that_of_many_draws(value):
    """Mean distance of draws to the value, minus half of that between draws."""
    rain = np.where(RNG(0).random(1000) < 0.4, 0.0, RNG(1).exponential(2, 1000))
    bins = Bins.fit(rain, 8)
    probability = RNG(2).dirichlet(np.ones(bins.size))
    drawn = bins.draw(RNG(3).choice(bins.size, 400_000, p=probability), RNG(4))
    one, other = drawn[:200_000], drawn[200_000:]
    expected = np.abs(drawn - value).mean() - np.abs(one - other).mean() / 2
    assert bins.crps(probability, value) == pytest.approx(expected, abs=0.01)


def test_an_interval_of_an_atom_holds_it():
    bins = Bins.fit(np.where(RNG(0).random(500) < 0.9, 0.0, RNG(1).random(500)), 8)
    probability = np.full(bins.size, 0.001)
    probability[-1] = 1 - 0.001 * (bins.size - 1)
    assert bins.quantile(probability, 0.05) == 0.0
    assert bins.quantile(probability, 0.95) == 0.0


def test_rare_categories_are_pooled_and_new_ones_join_them():
    values = np.array(["a"] * 20 + ["b"] * 20 + ["c", "d", None], object)
    found = Categories.fit(values, rare=5)
    assert found.names == ("a", "b", OTHER)
    assert found.symbols(np.array(["b", "c", "new", None], object)).tolist() == [1, 2, 2, -1]
    without = Categories.fit(values[:40], rare=5)
    assert without.symbols(np.array(["new"], object)).tolist() == [-1]


def test_columns_survive_json():
    bins = Bins.fit(RNG(0).normal(size=100), 4, True)
    again = column(bins.as_json())
    values = RNG(1).normal(size=50)
    assert (again.symbols(values) == bins.symbols(values)).all()
    assert again.log_widths(values) == pytest.approx(bins.log_widths(values))
    names = Categories(("x", OTHER), True)
    assert column(names.as_json()) == names


def test_the_level_of_a_value_is_that_of_the_smallest_interval_with_it():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=200).round(3), np.full(40, 0.5), np.full(40, 7.0)])
    bins = Bins.fit(values, 8)
    p_V = rng.random(bins.size)
    p_V /= p_V.sum()

    def holds(value, level):
        low, high = (bins.quantile(p_V, q) for q in ((1 - level) / 2, (1 + level) / 2))
        return low <= value <= high

    for value in (*np.quantile(values, [0.02, 0.2, 0.4, 0.6, 0.9]), 0.5, 7.0):
        level = bins.level_of(p_V, float(value))
        assert holds(value, min(level + 1e-6, 1.0))
        assert level == 0 or not holds(value, level - 1e-6)
    assert bins.level_of(p_V, 99.0) == 1
