"""Schedules: known values in between, and what cannot be interpolated."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from mptune.spec.schema import build


def linear(start, end, kind="linear", **more):
    return build("policy", {"kind": kind, "start": start, "end": end, **more})


@pytest.mark.parametrize(("progress", "rate"), [(0, 0.5), (0.25, 0.4), (1, 0.1)])
def test_a_rate_falls_linearly(progress, rate):
    assert linear(0.5, 0.1).at(progress).rate == pytest.approx(rate)


@pytest.mark.parametrize(("progress", "rate"), [(0, 0.5), (0.5, 0.3), (1 / 3, 0.4), (1, 0.1)])
def test_a_rate_falls_along_a_cosine(progress, rate):
    assert linear(0.5, 0.1, "cosine_schedule").at(progress).rate == pytest.approx(rate)


def test_a_rate_is_shorthand_for_a_fixed_policy():
    assert linear(0.5, 0.1) == linear(
        {"kind": "fixed", "rate": 0.5}, {"kind": "fixed", "rate": 0.1}
    )


def test_every_number_is_interpolated():
    schedule = linear({"kind": "beta", "a": 2, "b": 8}, {"kind": "beta", "a": 4, "b": 1})
    assert schedule.at(0.5) == build("policy", {"kind": "beta", "a": 3, "b": 4.5})


def test_mixtures_are_interpolated_inside():
    def mixture(weight):
        parts = [{"weight": weight, "policy": 0.5}, {"weight": 1, "policy": {"kind": "uniform"}}]
        return {"kind": "mixture", "components": parts}

    q_M = linear(mixture(1), mixture(5)).pmf(4, 0.5)
    assert q_M == pytest.approx([1 / 16, 13 / 16, 1 / 16, 1 / 16])


def test_the_outer_reduction_holds():
    schedule = linear({"kind": "uniform"}, {"kind": "uniform", "high": 0.5}, reduction="token_mean")
    assert schedule.weights(np.array([3]), np.array([8]), 0.5).tolist() == [1.0]


def test_piecewise_rises_falls_and_stays():
    points = [{"at": a, "policy": r} for a, r in ((0, 0.1), (0.4, 0.5), (0.8, 0.2))]
    policy = build("policy", {"kind": "piecewise", "points": points})
    rates = [policy.at(s).rate for s in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.35, 0.2, 0.2])


def test_step_changes_at_its_points():
    stages = [{"at": 0, "policy": {"kind": "uniform"}}, {"at": 0.7, "policy": 0.5}]
    policy = build("policy", {"kind": "step", "stages": stages})
    assert policy.pmf(2, 0.69) == pytest.approx([0.5, 0.5])
    assert policy.pmf(2, 0.7).tolist() == [1.0, 0.0]


def test_words():
    assert linear(0.5, 0.15).words() == "linear 50→15 %"
    assert linear(0.5, 0.15, "cosine_schedule").words() == "cosine 50→15 %"
    beta = {"kind": "beta", "a": 1, "b": 2}
    assert linear(beta, {**beta, "a": 3}).words() == "linear beta(1.0, 2.0) → beta(3.0, 2.0)"


@pytest.mark.parametrize(
    ("start", "location", "message"),
    [
        (1.5, ("start",), "is not a mask rate; a rate is a fraction in"),
        (True, ("start",), "is neither a mask rate nor a policy"),
        ("half", ("start",), "is neither a mask rate nor a policy"),
        ({"kind": "unifrom"}, ("start",), "did you mean 'uniform'"),
        ({"rate": 0.5}, ("start",), "needs 'kind', one of adaptive, beta, "),
        ({"kind": "uniform"}, (), "cannot go from 'uniform' to 'fixed'; give two of one kind"),
        ({"kind": "fixed", "rate": 0.5, "reduction": "elbo"}, ("start",), "to the outer policy"),
        ({"kind": "fixed", "rate": 2}, ("start", "rate"), "is not a mask rate"),
    ],
)
def test_errors_name_the_place_and_the_rule(start, location, message):
    with pytest.raises(ValidationError, match=message) as caught:
        linear(start, 0.1)
    assert _location(caught.value) == location


def _location(error):
    """Where the innermost error is; pydantic keeps a nested error whole or spells it out."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    inner = _location(cause) if isinstance(cause, ValidationError) else ()
    return (*first["loc"], *inner)


def test_policies_that_differ_in_words_cannot_be_interpolated():
    power = {"kind": "power", "exponent": 2}
    with pytest.raises(ValidationError, match="only numbers may differ"):
        linear(power, {**power, "form": "u^k"})


@pytest.mark.parametrize("at", [[0.1, 0.5], [0, 0.5, 0.5], [0, 0.6, 0.3]])
def test_stages_start_at_zero_and_rise(at):
    stages = [{"at": a, "policy": 0.5} for a in at]
    with pytest.raises(ValidationError, match="starts with 0 and rises"):
        build("policy", {"kind": "step", "stages": stages})


@pytest.mark.parametrize(
    ("progress", "rate"), [(0, 0.1), (0.1, 0.3), (0.2, 0.5), (0.5, 0.5), (0.75, 0.35), (1, 0.2)]
)
def test_warmup_plateau_decay(progress, rate):
    given = {"start": 0.1, "plateau": 0.5, "end": 0.2, "warmup": 0.2, "decay": 0.5}
    policy = build("policy", {"kind": "warmup_plateau_decay", **given})
    assert policy.at(progress).rate == pytest.approx(rate)


def test_a_trapezoid_must_fit_into_training():
    given = {"start": 0.1, "plateau": 0.5, "end": 0.2, "warmup": 0.6, "decay": 0.5}
    with pytest.raises(ValidationError, match=r"warmup 0\.6 and decay 0\.5 are more than 1"):
        build("policy", {"kind": "warmup_plateau_decay", **given})
