"""Paired comparison: known answers, coverage, family-wise error, wording."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from mptune.analysis import (
    ArmScores,
    Difference,
    compare,
    selection_probabilities,
)
from mptune.analysis.crossed import Estimate, forecast
from mptune.analysis.intervals import half_width
from mptune.analysis.sequential import _simpson, nominal_levels, schedule, sequential_p
from tests.simulations import repetitions

T_2, T_1, T_3 = 4.302653, 12.706205, 3.182446  # Student quantiles at 97.5 %


def arm(name: str, scores: object, seeds: tuple[int, ...] | None = None, **kw: float) -> ArmScores:
    scores_SN = np.asarray(scores, dtype=float)
    return ArmScores(name, scores_SN, seeds or tuple(range(len(scores_SN))), 10.0, **kw)


def pair(d: object, **options: float) -> Difference:
    """Compare an arm that differs from a baseline of zeros by `d`."""
    d_SN = np.asarray(d, dtype=float)
    (difference,) = compare([arm("base", 0 * d_SN), arm("new", d_SN)], "base", **options)
    return difference


def test_anova_by_hand() -> None:
    # Rows are seeds. Grand mean 5; seed means 4, 6; sequence means 3, 5, 7.
    # MS_seed = 3·(1+1)/1 = 6; MS_seq = 2·(4+0+4)/2 = 8; residuals ±1, 0, ∓1: MS_res = 4/2 = 2.
    difference = pair([[1, 4, 7], [5, 6, 7]])
    v_seed, v_seq = 6 / 6, (8 - 2) / 6
    assert difference.nats_per_sequence == pytest.approx(5)
    assert difference.se_seed == pytest.approx(math.sqrt(v_seed))
    assert difference.se_sequences == pytest.approx(math.sqrt(v_seq))
    half_width = (v_seed * T_1 + v_seq * T_2) / math.sqrt(v_seed + v_seq)
    assert difference.half_width == pytest.approx(half_width, rel=1e-5)
    assert (difference.low, difference.high) == pytest.approx((5 - half_width, 5 + half_width))
    assert difference.nats_per_token == pytest.approx(0.5)


def test_sequence_part_has_a_floor_at_zero() -> None:
    difference = pair([[1, -1], [-1, 1]])  # all residual
    assert difference.se_sequences == 0
    assert difference.se_seed == 0


def test_one_seed_is_a_paired_t_test() -> None:
    difference = pair([[1, 2, 3, 4]])
    assert difference.se_seed is None
    assert difference.half_width == pytest.approx(T_3 * math.sqrt(5 / 3 / 4), rel=1e-5)


def test_p_value_without_evaluation_noise_is_students() -> None:
    d_SN = [[1.0, 1.0], [3.0, 3.0], [0.5, 0.5]]
    found = pair(d_SN)
    t = 1.5 / (math.sqrt(1.75) / math.sqrt(3))
    assert found.p_value == pytest.approx(2 * stdtr(2, -t), rel=1e-6)
    assert pair(d_SN, level=1 - found.p_value).low == pytest.approx(0, abs=1e-9)


def test_p_value_is_the_mean_over_the_unknown_seed_variance() -> None:
    made = Estimate(2.0, ((0.5, 2), (0.7, 10_000)))
    rng = np.random.default_rng(0)
    variance = 0.5 * 2 / rng.chisquare(2, 400_000) + 0.7
    by_simulation = np.mean(2 * stdtr(10_000, -2.0 / np.sqrt(variance)))
    assert made.p_value() == pytest.approx(by_simulation, rel=0.005)


def test_identical_arms_are_undecided_with_p_one() -> None:
    difference = pair(np.zeros((3, 5)))
    assert (difference.half_width, difference.p_value) == (0, 1)
    assert difference.verdict == "undecided"


def test_bits_per_byte_is_a_code_length() -> None:
    text = [arm("base", np.zeros((2, 2)), bytes_per_token=4.0)]
    text.append(arm("new", [[1, 3], [2, 4]], bytes_per_token=4.0))
    (difference,) = compare(text, "base")
    assert difference.bits_per_byte == pytest.approx(-0.25 / math.log(2) / 4)


def simulate(
    rng: np.random.Generator, seed_ratio: float, S: int = 3, n: int = 200
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Zero-mean scores; seed variance of the mean over evaluation variance is `seed_ratio`."""
    evaluation = 1 / n + 1 / (S * n)
    seed = rng.normal(0, math.sqrt(seed_ratio * evaluation * S), (S, 1))
    return seed + rng.normal(size=(1, n)) + rng.normal(size=(S, n))


def slack(runs: int) -> float:
    """1.5 standard errors of a rate of 5 % or 95 % over so many runs."""
    return 1.5 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.simulation
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_ratio", [0.0, 1.0, 10.0])
def test_coverage_with_both_noises(seeds: int, seed_ratio: float) -> None:
    rng, times = np.random.default_rng(7), repetitions(200, 800)
    runs = [pair(simulate(rng, seed_ratio, seeds)) for _ in range(times)]
    coverage = np.mean([run.low <= 0 <= run.high for run in runs])
    assert 0.93 - slack(times) <= coverage <= 0.97 + slack(times)


def test_coverage_of_evaluation_noise_with_one_seed() -> None:
    rng = np.random.default_rng(3)
    runs = [pair(rng.normal(size=(1, 50))) for _ in range(800)]
    assert 0.93 <= np.mean([run.low <= 0 <= run.high for run in runs]) <= 0.97


def null_families(replications: int) -> Iterator[list[Difference]]:
    rng = np.random.default_rng(11)
    for _ in range(replications):
        arms = [arm(name, simulate(rng, 1.0, n=60)) for name in "abcd"]
        yield compare(arms, "a")


@pytest.mark.simulation
def test_family_wise_error_of_three_challengers() -> None:
    families = list(null_families(repetitions(200, 600)))
    wrong = np.mean([any(d.verdict != "undecided" for d in family) for family in families])
    assert wrong <= (0.05 if len(families) == 600 else 0.05 + slack(len(families)))


def test_holm_by_hand() -> None:
    rng = np.random.default_rng(5)
    noise = {name: rng.normal(size=(4, 30)) for name in "bcd"}
    shift = {"b": 0.9, "c": 0.5, "d": 0.0}
    arms = [arm("a", np.zeros((4, 30))), *(arm(k, v + shift[k]) for k, v in noise.items())]
    together = compare(arms, "a")
    alone = sorted(compare([arms[0], challenger], "a")[0].p_value for challenger in arms[1:])
    expected = np.maximum.accumulate(np.minimum(1, np.array(alone) * [3, 2, 1]))
    assert sorted(d.p_value for d in together) == pytest.approx(expected)


def test_order_of_seeds_sequences_and_arms_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    scores = {name: rng.normal(size=(3, 20)) for name in ("base", "x", "y")}
    columns, rows = rng.permutation(20), (2, 0, 1)
    first = compare([arm(k, v) for k, v in scores.items()], "base")
    shuffled = [arm(k, v[:, columns][list(rows)], rows) for k, v in reversed(scores.items())]
    second = {d.arm: d for d in compare(shuffled, "base")}
    for difference in first:
        other = second[difference.arm]
        assert other.nats_per_sequence == pytest.approx(difference.nats_per_sequence)
        assert other.half_width == pytest.approx(difference.half_width)
        assert other.p_value == pytest.approx(difference.p_value)


def test_a_seed_that_one_arm_lacks_is_left_out_of_all() -> None:
    d_SN = np.array([[1.0, 2, 4], [3, 4, 6], [100, 100, 100]])
    base, new = arm("base", np.zeros((3, 3))), arm("new", d_SN[:2], seeds=(0, 1))
    (difference,) = compare([base, new], "base")
    assert difference.seeds == 2
    assert difference.nats_per_sequence == pytest.approx(d_SN[:2].mean())


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([arm("a", [[1, 2]])], "at least two arms"),
        ([arm("a", [[1, 2]]), arm("a", [[1, 2]])], "at least two arms"),
        ([arm("b", [[1, 2]]), arm("c", [[1, 2]])], "baseline 'a'"),
        ([arm("a", [[1, 2]], (1,)), arm("b", [[1, 2]], (2,))], "no training seed in common"),
        ([arm("a", [[1, 2]]), arm("b", [[1, 2, 3]])], "same sequences"),
    ],
)
def test_unpaired_arms_are_refused(arms: list[ArmScores], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(arms, "a")


@pytest.mark.parametrize(
    ("scores", "seeds", "message"),
    [
        ([[1, math.nan]], (0,), "not finite"),
        ([[1, 2]], (0, 1), "expected \\(2 seeds"),
        ([[1, 2], [1, 2]], (3, 3), "a seed twice"),
    ],
)
def test_wrong_scores_are_refused(scores: object, seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arm("a", scores, seeds)


def test_equivalent_within_a_margin() -> None:
    rng = np.random.default_rng(1)
    d_SN = 0.02 + 0.1 * rng.normal(size=(4, 100))
    assert pair(d_SN, margin=1.0).verdict == "equivalent"
    assert pair(d_SN, margin=0.02).verdict != "equivalent"


def test_equivalent_only_when_the_interval_lies_inside_the_margin() -> None:
    d_SN = [[0.1, 0.4, 0.7, 0.2], [0.5, 0.6, 0.7, 0.4], [0.2, 0.6, 0.5, 0.2]]
    found = pair(d_SN)
    assert pair(d_SN, margin=0.999 * found.high).verdict != "equivalent"
    assert pair(d_SN, margin=4 * found.high).verdict == "equivalent"


@pytest.mark.parametrize("seeds", [1, 4])
def test_selection_by_simulation(seeds: int) -> None:
    rng = np.random.default_rng(4)
    shared = 5 * rng.normal(size=(1, 50))
    arms = [
        arm(name, shared + shift + 0.2 * rng.normal(size=(seeds, 50)))
        for name, shift in (("low", -3.0), ("a", 0.0), ("b", 0.0))
    ]
    low, a, b = selection_probabilities(arms)
    assert low.probability < 0.01
    assert low.probability + a.probability + b.probability == pytest.approx(1)
    assert low.expected_regret == pytest.approx(3, abs=0.3)
    assert min(a.expected_regret, b.expected_regret) < 0.1


def test_selection_probability_matches_the_t_distribution() -> None:
    # Two arms, no sequence noise: P(best) is a Student tail of the seed differences.
    d = np.array([[1.0, 1.0], [3.0, 3.0], [0.5, 0.5]])
    _, new = selection_probabilities([arm("base", 0 * d), arm("new", d)], draws=100_000)
    p = pair(d).p_value
    assert new.probability == pytest.approx(1 - p / 2, abs=0.005)


@pytest.mark.simulation
@pytest.mark.parametrize("seeds", [2, 5])
def test_family_wise_error_at_few_seeds(seeds: int) -> None:
    rng, times = np.random.default_rng(17), repetitions(150, 400)
    wrong = []
    for _ in range(times):
        arms = [arm(name, simulate(rng, 16.0, seeds, n=60)) for name in "abcd"]
        found = compare(arms, "a", forecasts=False)
        wrong.append(any(d.verdict != "undecided" for d in found))
    assert np.mean(wrong) <= 0.05 + slack(times)


# --- looks, and how much more would decide -----------------------------------------------------


def test_levels_of_looks_spend_alpha_and_no_more() -> None:
    looks = schedule(3, 12)
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(100_000, 12)).cumsum(1)
    z = np.stack([sums[:, k - 1] / math.sqrt(k) for k in looks], axis=1)
    p = 2 * stdtr(1e9, -np.abs(z))
    spent = (p <= nominal_levels(looks, 0.05)).cumsum(1).astype(bool).mean(0)
    assert spent == pytest.approx([0.05 * k / 12 for k in looks], abs=0.002)


def test_sequential_p_is_the_level_that_a_look_just_reaches() -> None:
    looks = (3, 5, 8)
    for k in range(3):
        p = nominal_levels(looks, 0.02)[k]
        assert sequential_p([*[0.9] * k, p], looks) == pytest.approx(0.02, rel=1e-3)
    assert sequential_p([0.03], (4,)) == 0.03
    assert sequential_p([0.001, 0.9], looks) == sequential_p([0.001], looks)


@pytest.mark.simulation
def test_type_one_error_when_seeds_are_added_until_decided() -> None:
    looks, rng, times = schedule(3, 8), np.random.default_rng(21), repetitions(150, 400)
    wrong = []
    for _ in range(times):
        scores = {name: simulate(rng, 4.0, 8, n=50) for name in "ab"}
        seen = [[arm(k, v[:look]) for k, v in scores.items()] for look in looks]
        found = [compare(s, "a", looks=looks, forecasts=False)[0].verdict for s in seen]
        wrong.append(any(verdict != "undecided" for verdict in found))
    assert np.mean(wrong) <= 0.05 + slack(times)


def test_a_look_is_corrected_for_all_looks() -> None:
    rng = np.random.default_rng(3)
    d_SN = 0.3 + rng.normal(size=(3, 40))
    arms = [arm("base", 0 * d_SN), arm("new", d_SN)]
    (alone,), (first,) = compare(arms, "base"), compare(arms, "base", looks=(3, 5, 8))
    assert first.p_value > alone.p_value
    assert first.half_width > alone.half_width
    assert (first.look, first.looks, alone.looks) == (1, 3, 1)


def test_forecast_keeps_its_promise() -> None:
    rng = np.random.default_rng(8)
    d_SN = 0.5 + rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 100))
    d_SN += 0.5 - d_SN.mean()
    found = forecast(d_SN, 0.05)
    assert found.seeds is not None
    assert found.sequences is None  # more sequences do not help against training noise
    spread = d_SN.mean(1).std(ddof=1)
    decided = []
    for _ in range(400):
        S = 3 + found.seeds
        new = 0.5 + spread * rng.normal(size=(S, 1)) + 0.1 * rng.normal(size=(S, 100))
        decided.append(pair(new, forecasts=False).verdict == "better")
    assert 0.7 <= np.mean(decided) <= 0.95


def test_only_an_undecided_pair_is_forecast() -> None:
    rng = np.random.default_rng(8)
    d_SN = rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 100))
    undecided = pair(d_SN - d_SN.mean() + 0.2)
    assert undecided.verdict == "undecided"
    assert undecided.more_seeds is not None
    nothing = pair(d_SN - d_SN.mean())
    assert (nothing.more_seeds, nothing.sequences_needed) == (None, None)
    decided = pair(d_SN + 50)
    assert (decided.more_seeds, decided.sequences_needed) == (None, None)


def test_one_seed_tells_nothing_of_what_more_would_do() -> None:
    with np.errstate(all="raise"):
        found = forecast(np.random.default_rng(0).normal(0.1, 1.0, (1, 40)), 0.05)
    assert (found.seeds, found.sequences) == (None, None)


def test_sequences_needed_by_hand() -> None:
    """Without noise of seeds, N sequences decide once the mean is t + z standard errors away."""
    row_N = np.random.default_rng(2).normal(0.1, 1.0, 100)
    row_N += 0.1 - row_N.mean()
    found = forecast(np.stack([row_N, row_N]), 0.05)

    def decides(N: int) -> bool:
        se = math.sqrt(row_N.var(ddof=1) / N)
        return bool((stdtrit(N - 1, 0.975) + 0.8416) * se <= 0.1)

    assert found.seeds is None
    assert found.sequences is not None
    assert decides(found.sequences)
    assert not decides(found.sequences - 25)


def test_integration_weights_are_exact_to_fourth_order() -> None:
    x_G = np.linspace(-1.0, 3.0, 160)
    weights_G = _simpson(x_G)
    assert weights_G.sum() == pytest.approx(4.0, abs=1e-12)
    assert weights_G @ x_G**2 == pytest.approx(28 / 3, abs=1e-6)
    assert weights_G @ np.exp(x_G) == pytest.approx(math.e**3 - math.exp(-1), abs=1e-5)


def test_half_widths() -> None:
    assert half_width(0.5) == 0.98
    assert half_width(0.5, 2) == pytest.approx(0.5 * T_2, rel=1e-6)
