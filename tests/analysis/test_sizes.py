"""Laws over size on simulated runs whose law is known, and how often their intervals cover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import helmert
from scipy.stats import multivariate_t

from mptune.analysis.sizes import (
    KAPPA,
    KAPPA_PRIOR,
    MIDDLES,
    POWERS,
    PRIOR,
    RHO,
    RHO_PRIOR,
    TURNS,
    WIDTHS,
    Array,
    BySize,
    Measured,
    averaged_law,
    by_size,
    left_out,
    size_law,
)  # fmt: skip
from mptune.trial import Cost, LMLScore, Trial, TrialResult
from tests.simulations import repetitions

SIZES, RATES = (1e5, 4e5, 1.6e6), (0.1, 0.15, 0.3, 0.5, 0.7)


def best_rate(N: float) -> float:
    """The law: it falls with size."""
    return 1 / (1 + math.exp(0.6 + 0.25 * math.log(N / 4e5)))


def logit(r: float) -> float:
    return math.log(r / (1 - r))


def trial(policy: dict[str, Any], N: float, seed: int, score: float, rate: float = 0.5) -> Trial:
    result = TrialResult.model_construct(
        lml=LMLScore.model_construct(nats_per_token=score),
        cost=Cost.model_construct(parameters=int(N)),
        mean_mask_rate=rate,
    )
    return Trial.model_construct(state="COMPLETE", policy=policy, seed=seed, result=result)


def fixed(rng: np.random.Generator, sd: float) -> Iterator[Trial]:
    """Fixed rates at every size, one run each."""
    for N, r in itertools.product(SIZES, RATES):
        top = -3 + 0.2 * math.log(N) - 0.08 * (logit(r) - logit(best_rate(N))) ** 2
        yield trial({"kind": "fixed", "rate": r}, N, 0, top + sd * rng.normal())


def measured(
    law: Callable[[Array], Array], rng: np.random.Generator, S: int, k: int = 3
) -> Measured:
    """Gaps at S sizes that are 4 times apart, with k seeds of standard deviation 0.015."""
    u_S = math.log(4) * np.arange(S)
    gaps = law(u_S)[:, None] + 0.015 * rng.normal(size=(S, k))
    squares = float(k * gaps.var(1).sum())
    return Measured(1e5 * np.exp(u_S), gaps.mean(1), np.eye(S) / k, squares, S * (k - 1), [k] * S)


def report(trials: Sequence[Trial], *extrapolate_to: float) -> BySize:
    found = by_size(trials, extrapolate_to)
    assert found is not None
    return found


LAWS: dict[str, Callable[[Array], Array]] = {
    "constant": lambda u: 0.05 + 0 * u,
    "linear": lambda u: 0.05 + 0.02 * u,
    "power": lambda u: 0.03 * np.exp(0.35 * u),
    "saturating": lambda u: 0.1 * u / (u + 1.5),
}


@pytest.mark.parametrize("name", LAWS)
def test_intervals_cover_four_times_beyond_the_largest_size(name: str) -> None:
    """A straight line covers 20 % of the power law, and the average of forms 90 %."""
    rng, replications, S = np.random.default_rng(0), repetitions(60, 500), 4
    u, inside = math.log(4) * S, 0
    truth, at = float(LAWS[name](np.array(u))), 1e5 * math.exp(u)
    for _ in range(replications):
        low, _, high = averaged_law(measured(LAWS[name], rng, S), [at]).quantiles_T3[0]
        inside += low <= truth <= high
    assert inside / replications >= 0.82


def test_intervals_of_the_best_rate_cover() -> None:
    rng, replications, inside, tops = np.random.default_rng(0), repetitions(60, 500), 0, []
    for _ in range(replications):
        law = report(list(fixed(rng, 0.01)), 6.4e6).best_rate
        assert law is not None
        assert law.covered or law.extrapolation[0].verdict == "left out"
        at = law.extrapolation[0].at
        inside += at is None or at.low <= best_rate(6.4e6) <= at.high
        tops += [(p.low or 0) <= best_rate(p.parameters) <= (p.high or 0) for p in law.points]
    assert inside / replications >= 0.85
    assert np.mean(tops) == pytest.approx(0.95, abs=0.04)


U, SHAPES = math.log(4) * np.arange(-3.0, 2.0), {
    "constant": [lambda u: 0 * u],
    "linear": [lambda u: u / math.log(64)],
    "power": [lambda u, g=g: np.exp(g * u) / abs(1 - 64**-g) for g in POWERS],
    "saturating": [
        lambda u, a=a, w=w: np.tanh((u - a) / w)
        / (math.tanh(-a / w) + math.tanh((math.log(64) + a) / w))
        for a in math.log(64) * np.array(MIDDLES) for w in WIDTHS
    ],
    "turning": [
        lambda u, m=m: (u / math.log(64) - m) ** 2 / max(m**2, (1 + m) ** 2) for m in TURNS
    ],
}  # fmt: skip
"""Four sizes and one beyond, and what each form is there, with a range of 1 between the four."""


def test_weights_are_marginal_likelihoods() -> None:
    """Contrasts have no level, and given the squares they are multivariate t."""
    y, V, contrasts = np.array([0.02, 0.05, 0.06, 0.09]), np.diag([0.3, 0.5, 0.2, 1]), helmert(4)
    found = {}
    for form, shapes in SHAPES.items():
        parts = itertools.product(
            [shape(U[:4]) for shape in shapes],
            zip(RHO, RHO_PRIOR, strict=True),
            zip(KAPPA, KAPPA_PRIOR, strict=True),
        )
        found[form] = sum(
            PRIOR[form] / len(shapes) * p * q
            * multivariate_t.pdf(contrasts @ y, df=5, shape=2e-4 * contrasts @ (
                V + (kappa * rho) ** 2 * np.eye(4) + rho**2 * np.outer(phi, phi)
            ) @ contrasts.T)
            for phi, (rho, p), (kappa, q) in parts
        )  # fmt: skip
    law = averaged_law(Measured(np.exp(U[:4]), y, V, 1e-3, 5, [2] * 4), [1.0])
    total = sum(found.values())
    assert law.weights == pytest.approx({f: x / total for f, x in found.items()}, rel=0.01)


def test_laws_drawn_from_the_prior_are_covered() -> None:
    """At another size, and what is measured there: 95 % each."""
    rng, inside, replications = np.random.default_rng(0), np.zeros(2), repetitions(400, 4000)
    variance_S = 1 / np.array([2, 5, 4, 3, 1])
    for _ in range(replications):
        form = rng.choice(list(PRIOR), p=list(PRIOR.values()))
        shape = SHAPES[form][rng.integers(len(SHAPES[form]))]
        rho, kappa = rng.choice(RHO, p=RHO_PRIOR), rng.choice(KAPPA, p=KAPPA_PRIOR)
        law_S = 7 + rho * rng.normal() * shape(U)
        y_S = law_S + np.sqrt(variance_S + (kappa * rho) ** 2) * rng.normal(size=5)
        five = Measured(np.exp(U), y_S, np.diag(variance_S), rng.chisquare(7), 7, [2] * 5)
        four = replace(
            five, parameters_S=np.exp(U[:4]), y_S=y_S[:4], covariance_SS=np.diag(variance_S[:4])
        )
        found = averaged_law(four, np.exp(U[4:])), left_out(five)
        ends = np.array([law.quantiles_T3[0, [0, 2]] for law in found])
        true = np.array([law_S[4], y_S[4]])
        inside += (ends[:, 0] <= true) & (true <= ends[:, 1])
    one = averaged_law(four, np.exp(U[4:]), noise=1.0)
    assert left_out(five).quantiles_T3 == pytest.approx(one.quantiles_T3)
    assert inside / replications == pytest.approx(0.95, abs=0.03)


def test_without_noise_the_law_is_found() -> None:
    u_S = math.log(4) * np.arange(4)
    exact = Measured(1e5 * np.exp(u_S), LAWS["linear"](u_S), np.eye(4) / 3, 1e-10, 8, [6] * 4)
    law = size_law("gap", "x", exact, [1e5, 1.28e7, 2.56e7, 1e8])
    assert {form.form: form.weight for form in law.forms}["linear"] > 0.9
    assert [e.verdict for e in law.extrapolation] == ["inside", "agreed", "far", "too far"]
    near, far = law.extrapolation[1:3]
    assert near.at is not None
    assert far.at is not None
    assert near.at.value == pytest.approx(0.05 + 0.02 * math.log(128), abs=0.003)
    assert far.at.high - far.at.low > near.at.high - near.at.low
    assert law.extrapolation[3].at is None
    assert law.size_matters


def test_a_constant_is_not_taken_for_a_trend() -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(30):
        found += size_law("gap", "x", measured(LAWS["constant"], rng, 3), []).size_matters
    assert found <= 3


def test_nothing_is_extrapolated_where_the_largest_size_is_a_surprise() -> None:
    sizes, y = 1e5 * 4.0 ** np.arange(4), np.array([0.05, 0.051, 0.049, 0.3])
    law = size_law("gap", "x", Measured(sizes, y, np.eye(4) / 3, 1e-4, 8, [6] * 4), [1e7])
    assert not law.covered
    assert law.left_out is not None
    assert law.left_out.high < 0.3
    assert (law.extrapolation[0].verdict, law.extrapolation[0].at) == ("left out", None)


def test_two_sizes_are_too_few_to_extrapolate() -> None:
    law = size_law("gap", "x", measured(LAWS["linear"], np.random.default_rng(0), 2), [1e6])
    assert (law.extrapolation[0].verdict, law.left_out, law.covered) == ("few sizes", None, False)
    assert law.curve[-1].parameters == pytest.approx(4e5)


def test_forms_that_differ_are_marked() -> None:
    """Three sizes of a valley may be a saturating law as well."""
    sizes, y = 1e5 * 4.0 ** np.arange(3), np.array([0.08, 0.0075, 0.012])
    law = size_law("gap", "x", Measured(sizes, y, np.eye(3) / 3, 1e-3, 6, [6] * 3), [4e6])
    assert law.extrapolation[0].verdict == "forms differ"


def paired(gap: Callable[[float, int], float], seeds: int = 2) -> list[Trial]:
    """Fixed 15 % and accumulated at every size and seed, without noise."""
    policies = ({"kind": "fixed", "rate": 0.15}, {"kind": "uniform"})
    return [
        trial(policies[k], N, seed, -3.0 + seed + k * gap(N, seed))
        for N, seed, k in itertools.product(SIZES, range(seeds), (0, 1))
    ]


def test_a_gap_is_of_one_seed() -> None:
    law = report(paired(lambda N, seed: 0.1 * seed + N / 1e6)).gap
    assert law is not None
    assert law.of == "accumulated - fixed 15 %"
    assert [p.value for p in law.points] == pytest.approx([0.05 + N / 1e6 for N in SIZES])
    assert [p.runs for p in law.points] == [4, 4, 4]
    # Student's interval of 0 and 0.1 around their mean, with the three sizes' degrees of freedom.
    assert law.points[0].high == pytest.approx(0.15 + 3.182446 * 0.05 * math.sqrt(2) / math.sqrt(2))


def test_the_best_of_many_is_chosen_on_other_seeds() -> None:
    """Ten policies as good as fixed 15 %: the best of each seed would gain 1.5 sd."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(25):
        trials = [
            trial({"kind": "beta", "a": a} if a else {"kind": "fixed", "rate": 0.15}, N, seed,
                  float(rng.normal()))
            for N, seed, a in itertools.product(SIZES[:2], range(3), range(11))
        ]  # fmt: skip
        law = report(trials).gap
        assert law is not None
        gaps += [point.value for point in law.points]
    assert law.of == "best - fixed 15 %"
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / math.sqrt(len(gaps))


def test_one_seed_cannot_choose() -> None:
    policies = [{"kind": "fixed", "rate": 0.15}, {"kind": "beta", "a": 1}, {"kind": "beta", "a": 2}]
    found = report([trial(policy, N, 0, -3.0) for N in SIZES for policy in policies])
    assert found.gap is None
    assert "takes two seeds" in found.gap_missing


def size(t: Trial) -> int:
    return t.require_result().cost.parameters


@pytest.mark.parametrize(
    ("rates", "sizes", "said"),
    [
        ((0.15, 0.3), SIZES, "three rates or more"),
        ((0.1, 0.15), SIZES[:2], "three rates or more"),
    ],
)
def test_too_little_says_what_is_needed(
    rates: tuple[float, ...], sizes: tuple[float, ...], said: str
) -> None:
    all_runs = fixed(np.random.default_rng(0), 0.01)
    found = by_size([t for t in all_runs if t.policy["rate"] in rates and size(t) in sizes])
    assert found is not None
    assert found.best_rate is None
    assert said in found.best_rate_missing


def test_no_top_is_no_law() -> None:
    runs = fixed(np.random.default_rng(0), 1e-4)
    found = by_size([
        trial(t.policy, size(t), 0, -t.nats_per_token) for t in runs
    ])  # fmt: skip
    assert found is not None
    assert "does not fall on both sides" in found.best_rate_missing


def test_one_size_has_no_law() -> None:
    runs = [t for t in fixed(np.random.default_rng(0), 0.01) if size(t) == SIZES[0]]
    assert by_size(runs) is None
