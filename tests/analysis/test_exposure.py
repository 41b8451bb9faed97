"""The surrogate of policies: planted laws, policies that it has not seen, and what may not matter.

The bed `flow` knows nothing of the exposure law: mask rates are tasks of one linear model, which
follows the gradient of the loss that a policy gives them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from mptune import plugins
from mptune.analysis.exposure import BANDS, COUNTS, Evidence, Exposed, Points, Surrogate, same

Array = NDArray[np.float64]
Policy = dict[str, Any]


def points(*policies: Policy, **context: list[Any]) -> Points:
    return Points.of(
        [
            Exposed.of({"policy": policy, **{name: v[k] for name, v in context.items()}})
            for k, policy in enumerate(policies)
        ]
    )


def evidence(
    points: Points,
    score_N: Array,
    curve_NG: Array | None = None,
    seed_N: NDArray[np.int64] | None = None,
) -> Evidence:
    n = len(points)
    known_NG = np.full((n, BANDS), np.nan) if curve_NG is None else curve_NG
    return Evidence(
        points, score_N, known_NG, np.zeros(n), np.zeros(n, int) if seed_N is None else seed_N
    )


def catalogue(rng: np.random.Generator, count: int) -> list[Policy]:
    """Random policies of five kinds."""

    def one() -> Policy:
        a, b, c = rng.random(3)
        kinds: list[Policy] = [
            {"kind": "fixed", "rate": 0.05 + 0.85 * a},
            {"kind": "uniform", "low": 0.5 * a, "high": 0.5 * a + 0.2 + 0.3 * b},
            {"kind": "beta", "a": np.exp(2.5 * a - 0.7), "b": np.exp(2.5 * b - 0.7)},
            {"kind": "linear", "start": 0.3 + 0.6 * a, "end": 0.05 + 0.35 * b},
            {"kind": "step", "stages": [
                {"at": 0, "policy": {"kind": "uniform"}},
                {"at": 0.3 + 0.5 * a, "policy": 0.1 + 0.5 * b},
            ]},
        ]  # fmt: skip
        return kinds[int(c * len(kinds))]

    return [one() for _ in range(count)]


def planted(points: Points, h: float, recency: float) -> Array:
    """Scores of the bands by the exposure law itself, [N, G]."""
    e_NG = points.log_exposure(h, recency)
    band_G = np.linspace(0, 1, BANDS)
    return -2 - 2 * band_G + (0.3 - 0.1 * band_G) * e_NG - 0.04 * e_NG**2


def flow(points: Points, seed: int) -> Array:
    """Scores of the bands of a linear model that follows the gradient of each policy, [N, G]."""
    rng = np.random.default_rng(seed)
    rate_F, features, steps = np.arange(1, COUNTS + 1) / COUNTS, 24, 48
    knots = np.linspace(0, 1, 5)
    target_KF = [np.interp(rate_F, knots, rng.normal(size=5)) for _ in range(features)]
    near_FA = np.exp(-(((rate_F[:, None] - np.linspace(0, 1, 6)) / 0.25) ** 2))
    curvature_FK = near_FA @ rng.normal(size=(6, features)) ** 2
    curvature_FK *= np.exp(-2.2 * rng.uniform(0.5, 1.5, features) * np.linspace(0, 1, features))
    target_FK, scale_F1 = np.array(target_KF).T, np.linspace(0.3, 2.2, COUNTS)[:, None]
    weight_NK = np.zeros((len(points), features))
    for step in range(steps):
        omega_NF = points.omega_NSF[:, step * points.omega_NSF.shape[1] // steps]
        pull_NK = omega_NF @ (scale_F1 * curvature_FK) / COUNTS
        goal_NK = omega_NF @ (scale_F1 * curvature_FK * target_FK) / COUNTS
        rate = 0.7 * (1 + np.cos(np.pi * step / steps)) + 0.06
        moved_NK = 1 - np.exp(-rate * pull_NK)
        weight_NK += moved_NK * (goal_NK / np.maximum(pull_NK, 1e-12) - weight_NK)
    loss_NF = ((weight_NK[:, None] - target_FK) ** 2 * curvature_FK).sum(2) * scale_F1.T
    score_NF = -1.5 - 2.5 * rate_F**0.7 - 0.025 * loss_NF
    found: Array = score_NF.reshape(len(points), BANDS, -1).mean(2)
    return found


def by_parameters(policies: list[Policy]) -> Array:
    """Kind and parameters as columns, those that a policy does not have in the middle."""

    def numbers(value: Any, name: str) -> dict[str, float]:
        if isinstance(value, int | float):
            return {name: float(value)}
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        found: dict[str, float] = {}
        for key, part in parts.items() if isinstance(parts, dict) else ():
            found |= numbers(part, f"{name}.{key}")
        return found

    rows = [{p["kind"]: 1.0, **numbers(p, p["kind"])} for p in policies]
    columns = []
    for name in sorted(set().union(*rows)):
        if "." in name:
            known = [row[name] for row in rows if name in row]
            low, high = min(known), max(known)
            filled = [row.get(name, (low + high) / 2) for row in rows]
            columns += [(np.array(filled) - low) / (high - low) - 0.5] if low < high else []
        else:
            columns.append(np.array([row.get(name, 0.0) for row in rows]))
    return np.stack(columns, axis=1)


def test_uniform_counts_are_an_exposure_of_one() -> None:
    names = points({"kind": "uniform"}, {"kind": "beta", "a": 1, "b": 1})
    assert names.omega_NSF == pytest.approx(1.0)
    assert names.log_exposure(0.1, 3.0) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", plugins.modules("policies"))
def test_every_policy_of_the_catalogue_has_an_exposure(kind: str) -> None:
    examples = plugins.load("policies", kind).examples()
    found = points(*(policy.model_dump(mode="json") for policy in examples))
    assert np.isfinite(found.omega_NSF).all()
    assert (found.omega_NSF >= 0).all()
    assert found.omega_NSF.mean((1, 2)) == pytest.approx(1.0, abs=0.05) or any(
        p.reduction == "elbo" for p in examples
    )


def test_a_point_without_a_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="has no `policy`"):
        Exposed.of({"training": {}})


def test_late_exposure_counts_more_and_reaches_neighbours() -> None:
    falling, rising = {"kind": "linear", "start": 0.9, "end": 0.1}, {}
    rising = {"kind": "linear", "start": 0.1, "end": 0.9}
    e_NG = points(falling, rising).log_exposure(0.1, 4.0)
    assert e_NG[0, 0] > e_NG[1, 0] + 1
    assert e_NG[1, -1] > e_NG[0, -1] + 1
    low, high = points({"kind": "fixed", "rate": 0.15}).log_exposure(0.1, 0.0)[0][[3, 8]]
    assert low > high + 1


def test_equal_exposures_are_the_same_whatever_they_are_called() -> None:
    beta = {"kind": "beta", "a": 1, "b": 1}
    mixture = {"kind": "mixture", "components": [{"weight": 1, "policy": {"kind": "uniform"}}]}
    power = {"kind": "power", "exponent": 1.02}
    all_one = points({"kind": "uniform"}, beta, mixture, power)
    assert same(all_one, all_one).all()
    others = points(
        {"kind": "fixed", "rate": 0.15},
        {"kind": "fixed", "rate": 0.2},
        {"kind": "linear", "start": 0.2, "end": 0.15},
        {"kind": "linear", "start": 0.15, "end": 0.2},
        {"kind": "uniform"},
        {"kind": "uniform", "corruption": "bert"},
    )
    assert (same(others, others) == np.eye(6, dtype=bool)).all()


def test_what_differs_beside_the_policy_is_context() -> None:
    uniform = [{"kind": "uniform"}] * 3
    found = points(*uniform, size=[1e5, 1e6, 1e7], rate=[0.1, 0.2, 0.3], family=["a", "b", "b"])
    family, rate, size = found.context_NZ.T
    assert family == pytest.approx([-1, 1, 1])
    assert rate == pytest.approx([-1, 0, 1])
    assert size == pytest.approx([-1, 0, 1])


@pytest.mark.parametrize(("h", "recency"), [(0.1, 4.0), (0.3, 0.5)])
def test_a_planted_law_is_recovered(h: float, recency: float) -> None:
    rng = np.random.default_rng(0)
    found = points(*catalogue(rng, 60))
    curve_NG = planted(found, h, recency)
    seen, unseen = slice(0, 16), slice(16, 60)
    score_N = curve_NG.mean(1)
    made = Surrogate.of(evidence(found.take(seen), score_N[seen], curve_NG[seen]))
    mean_N, sd_N = made.predict(found.take(unseen))
    assert np.corrcoef(mean_N, score_N[unseen])[0, 1] > 0.97
    assert np.abs(mean_N - score_N[unseen]).max() < 4 * sd_N.max()
    mean = sum(w * s.recency for s, w in made.weights.items())
    assert abs(mean - recency) < 2.0


def test_unseen_policies_are_predicted_better_than_by_kind_and_parameters() -> None:
    """Truth is the flow's; one row per bed of correlations after 12 noisy trials."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        policies = catalogue(rng, 60)
        made, columns = points(*policies), by_parameters(policies)
        curve_NG = flow(made, seed)
        score_N = curve_NG.mean(1)
        noise_N = 0.1 * score_N.std() * rng.normal(size=len(score_N))
        seen, unseen = slice(0, 12), slice(12, 60)
        y_N = (score_N + noise_N)[seen]
        known = evidence(made.take(seen), y_N, (curve_NG + noise_N[:, None])[seen])
        ours = Surrogate.of(known).predict(made.take(unseen))[0]
        kernel = ConstantKernel() * Matern(nu=2.5) + WhiteKernel()
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        theirs = process.fit(columns[seen], y_N).predict(columns[unseen])
        found.append([np.corrcoef(v, score_N[unseen])[0, 1] for v in (ours, theirs)])
    ours, theirs = np.mean(found, axis=0)
    assert ours > theirs + 0.1
    assert ours > 0.7


def test_the_order_of_trials_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    found = points(*catalogue(rng, 20), size=[*rng.choice([1e5, 1e6], 20)])
    curve_NG = flow(found, 1)
    known = evidence(found, curve_NG.mean(1), curve_NG)
    order = rng.permutation(20)
    first, second = (Surrogate.of(e).predict(found) for e in (known, known.take(order)))
    assert np.array_equal(first, second)


def test_scores_without_curves_are_enough() -> None:
    rng = np.random.default_rng(4)
    found = points(*catalogue(rng, 60))
    score_N = flow(found, 2).mean(1)
    mean_N, _ = Surrogate.of(evidence(found.take(slice(0, 30)), score_N[:30])).predict(found)
    assert np.corrcoef(mean_N[30:], score_N[30:])[0, 1] > 0.8


def test_noisy_policies_count_less() -> None:
    """Fixed rates, whose second seeds differ 20 times as much, have the larger variance."""
    steady, noisy = {"kind": "uniform"}, {"kind": "fixed", "rate": 0.15}
    found = points(steady, steady, noisy, noisy, {"kind": "fixed", "rate": 0.4})
    variance = evidence(found, np.array([1.0, 1.01, 0.5, 0.7, 0.6])).relative_noise
    assert variance[0] == variance[1] < variance[4] < variance[2] == variance[3]


def test_what_all_trials_of_a_seed_have_in_common_is_no_merit_of_a_policy() -> None:
    """The second seed is worse for all; policies that only it has trained are not worse."""
    rng = np.random.default_rng(6)
    found = points(*catalogue(rng, 16))
    curve_NG = flow(found, 4)
    score_N, seed_N = curve_NG.mean(1), np.arange(16) % 2
    known = found.take([*range(16), *range(0, 8, 2)])
    curves = np.concatenate([curve_NG, curve_NG[0:8:2]])
    seeds = np.concatenate([seed_N, np.ones(4, int)])
    worse = 2 * score_N.std() * seeds
    scores = curves.mean(1) - worse
    errors = []
    for told in (seeds, np.arange(20)):
        made = Surrogate.of(evidence(known, scores, curves - worse[:, None], told))
        mean_N = made.predict(found)[0]
        errors.append(np.corrcoef(mean_N, score_N)[0, 1])
    assert errors[0] > 0.97
    assert errors[0] > errors[1] + 0.05


def test_a_running_trial_leaves_less_doubt_and_the_same_expectation() -> None:
    rng = np.random.default_rng(5)
    found = points(*catalogue(rng, 13))
    curve_NG = flow(found, 3)
    known = evidence(found, curve_NG.mean(1), curve_NG)
    made = Surrogate.of(known.take(slice(0, 12)))
    twice = found.take([12, 12])
    draws = {
        pending: np.array(
            [made.draw(twice, pending, np.random.default_rng(k))[0][0] for k in range(300)]
        )
        for pending in (0, 1)
    }
    assert draws[1].std() < 0.8 * draws[0].std()
    assert draws[1].mean() == pytest.approx(draws[0].mean(), abs=3 * draws[0].std() / 300**0.5)
