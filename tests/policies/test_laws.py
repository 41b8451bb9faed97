"""Known answers of the single laws, and the wording of their errors."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import truncnorm

from mptune.spec.schema import build


def policy(kind, **parameters):
    return build("policy", {"kind": kind, **parameters})


def mean_count(q_M):
    return q_M @ np.arange(1, len(q_M) + 1)


@pytest.mark.parametrize("length", [7, 20, 128])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.999, 1.0])
def test_fixed_rounds_without_bias_to_the_two_neighbours(rate, length):
    q_M = policy("fixed", rate=rate).pmf(length, 0.0)
    assert mean_count(q_M) == pytest.approx(max(rate * length, 1), abs=1e-8)
    assert (q_M > 0).sum() <= 2


def test_fixed_masks_whole_counts_exactly():
    assert policy("fixed", rate=0.15).pmf(20, 0.0).tolist() == [0, 0, 1] + [0] * 17


def test_fixed_masks_at_least_one_position():
    assert policy("fixed", rate=0.01).pmf(5, 0.0).tolist() == [1, 0, 0, 0, 0]


def test_uniform_is_uniform_over_counts():
    assert policy("uniform").pmf(7, 0.0) == pytest.approx(np.full(7, 1 / 7))


def test_capped_uniform():
    q_M = policy("uniform", low=0.25, high=0.5).pmf(8, 0.0)
    assert q_M == pytest.approx([0, 0, 0.5, 0.5, 0, 0, 0, 0])


def test_beta_of_one_one_is_uniform():
    assert policy("beta", a=1, b=1).pmf(9, 0.0) == pytest.approx(np.full(9, 1 / 9))


def test_truncated_normal_of_mage():
    q_M = policy("truncated_normal").pmf(1000, 0.0)
    assert q_M[:500].sum() == 0
    mean = truncnorm.mean((0.5 - 0.55) / 0.25, (1 - 0.55) / 0.25, 0.55, 0.25)
    assert mean_count(q_M) / 1000 == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "parameters", "mean"),
    [
        ("cosine", {}, 2 / np.pi),
        ("power", {"exponent": 3}, 3 / 4),
        ("power", {"exponent": 3, "form": "u^k"}, 1 / 4),
        ("beta", {"a": 3, "b": 9}, 1 / 4),
    ],
)
def test_mean_rate_in_the_limit_of_long_sequences(kind, parameters, mean):
    assert policy(kind, **parameters).mean_rate(2000, steps=1) == pytest.approx(mean, abs=1e-3)


def test_mixture_adds_laws_by_weight():
    components = [{"weight": 3, "policy": 0.5}, {"weight": 1, "policy": {"kind": "uniform"}}]
    q_M = policy("mixture", components=components).pmf(4, 0.0)
    assert q_M == pytest.approx([1 / 16, 13 / 16, 1 / 16, 1 / 16])


def test_words():
    assert policy("fixed", rate=0.15).words() == "fixed 15 %"
    assert policy("beta", a=2, b=5).words() == "beta(2.0, 5.0)"
    assert policy("uniform", low=0.1, high=0.5).words() == "uniform 10-50 %"
    components = [{"weight": 3, "policy": 0.15}, {"weight": 1, "policy": 0.5}]
    words = policy("mixture", components=components).words()
    assert words == "mixture 0.75 fixed 15 % + 0.25 fixed 50 %"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fixed", "rate": 1.5}, "is not a mask rate; a rate is a fraction in"),
        ({"kind": "fixed", "rate": 0}, "is not a mask rate; a rate is a fraction in"),
        ({"kind": "uniform", "low": 0.5, "high": 0.2}, "low 0.5 is not below high 0.2"),
        (
            {"kind": "truncated_normal", "mean": 0.1, "std": 0.01},
            r"normal\(0.1, 0.01\) has no mass in \[0.5, 1.0\]; move the mean or widen std",
        ),
        ({"kind": "mixture", "components": [{"weight": 0, "policy": 0.1}]}, "greater than 0"),
        ({"kind": "mixture", "components": [{"weight": 1, "policy": 7}]}, "is not a mask rate"),
    ],
)
def test_errors_state_the_rule(values, message):
    with pytest.raises(ValidationError, match=message):
        build("policy", values)
