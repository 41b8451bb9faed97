from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.estimator import sudoku_grids
from mptune.lml.covariates import GaussianCovariates, TokenCovariates, position_controls
from mptune.lml.estimator import NonFiniteLogProb, estimate_from_sums, estimate_lml, masked_sums
from mptune.lml.groups import group_standard_error
from mptune.lml.plan import DEFAULT_VARIANCE, LMLPlan
from mptune.lml.regression import fit_residual_variance
from mptune.models.oracles import HMM, PPCA, Joint, MarkovChain
from tests.lml.test_identity import masks_of_size

SMALL_HMM = HMM.random(states=4, vocabulary_size=5, length=12, seed=1)


class GuessTable:
    """Covariates that know the answer: guesses [V] by token."""

    def __init__(self, guesses_V):
        self.guesses_V = guesses_V

    def controls(self, tokens_RD, observed_RD, masks_RkD):
        return position_controls(self.guesses_V[tokens_RD][..., None], observed_RD, masks_RkD)


def by_rate(curve):
    """A model whose log p depends on the mask rate alone, NaN where not masked."""

    def log_prob(tokens_BD, mask_BD):
        rate_B1 = mask_BD.sum(axis=1, keepdims=True) / mask_BD.shape[1]
        return np.where(mask_BD, curve(rate_B1), np.nan)

    return log_prob


def uneven(n, length, seed=0):
    lengths = np.random.default_rng(seed).integers(length // 2, length + 1, n)
    return np.arange(length) < lengths[:, None]


def test_independent_positions_are_scored_without_error():
    """A model equal to its control variate leaves nothing to chance."""
    rng = np.random.default_rng(0)
    tokens, observed = rng.integers(0, 4, (96, 15)), uneven(96, 15)
    logs_V = np.log([0.1, 0.2, 0.3, 0.4])
    estimate = estimate_lml(
        lambda x, mask: np.where(mask, logs_V[x], np.nan),
        tokens,
        observed,
        covariates=GuessTable(logs_V),
    )
    exact_N = np.where(observed, logs_V[tokens], 0.0).sum(axis=1)
    np.testing.assert_allclose(estimate.per_sequence, exact_N, rtol=1e-9)
    assert estimate.se_fixed < 1e-9
    assert estimate.se_population == pytest.approx(exact_N.std(ddof=1) / np.sqrt(96))
    assert estimate.nats_per_position == pytest.approx(exact_N.sum() / observed.sum())


def test_a_score_that_depends_on_the_rate_alone_is_exact():
    def curve(t):
        return -2.0 - t + 0.5 * t**3 + 0.1 * np.log(t)

    estimate = estimate_lml(by_rate(curve), np.zeros((64, 20), int), seed=3)
    exact = curve(np.arange(1, 21) / 20).sum()
    np.testing.assert_allclose(estimate.per_sequence, exact, rtol=1e-9)
    np.testing.assert_allclose(estimate.curve.smooth, curve(estimate.curve.mask_rate), rtol=1e-9)


def test_weights_alone_are_unbiased_with_uneven_lengths():
    """Too few forwards for a fit: z = w y, whose mean over plans is the sum of S(M)."""
    observed = np.array([[True] * 6, [True, False, True, True, False, False]])

    def log_prob(tokens_BD, mask_BD):
        return np.repeat(-np.sqrt(mask_BD.sum(axis=1, keepdims=True)), 6, axis=1)

    scores = [
        estimate_lml(log_prob, np.zeros((2, 6)), observed, forwards=1, seed=s).per_sequence
        for s in range(3000)
    ]
    exact = [-np.sqrt(np.arange(1, length + 1)).sum() for length in (6, 3)]
    error = np.std(scores, axis=0, ddof=1) / np.sqrt(3000)
    assert (np.abs(np.mean(scores, axis=0) - exact) < 3.5 * error).all()


SUDOKU = sudoku_grids()
CONSTANT_GUESS = GuessTable(np.full(4, np.log(1 / 4)))


@pytest.mark.parametrize(
    ("n", "forwards", "covariates"),
    [
        (16, 1, None),
        (30, 1, CONSTANT_GUESS),
        (16, 2, CONSTANT_GUESS),
        (30, 8, TokenCovariates.fit(SUDOKU.sample(500, seed=5), None, 4)),
    ],
    ids=["none-16", "constant-30", "constant-16", "counts-30"],
)
def test_few_sequences_and_controls_that_are_rounding_errors_do_not_bias(n, forwards, covariates):
    """Symbols are balanced and every grid has probability 1/288: only masks are random."""
    assert len(SUDOKU.outcomes_KD) == 288
    estimates = [
        estimate_lml(
            SUDOKU.log_prob,
            SUDOKU.sample(n, seed=10**6 + seed),
            forwards=forwards,
            seed=10**5 + seed,
            covariates=covariates,
        )
        for seed in range(300)
    ]
    errors = np.array([e.nats_per_sequence for e in estimates]) + np.log(288)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(300)
    bounds = np.array([e.interval() for e in estimates]) + np.log(288)
    assert ((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)).mean() >= 0.9


@pytest.mark.parametrize("bed", ["hmm", "markov", "ppca"])
def test_known_log_marginal_is_found(bed):
    if bed == "ppca":
        oracle = PPCA.random(length=20, latent=2, seed=1)
        covariates = GaussianCovariates.fit(oracle.sample(500, seed=2))
    else:
        oracle = SMALL_HMM if bed == "hmm" else MarkovChain.random_chain(length=12)
        covariates = TokenCovariates.fit(oracle.sample(500, seed=2), None, 8)
    tokens = oracle.sample(300, seed=3)
    truth = oracle.log_marginal(tokens).mean()
    estimate = estimate_lml(oracle.log_prob, tokens, covariates=covariates)
    assert abs(estimate.nats_per_sequence - truth) < 3.5 * estimate.se_fixed
    assert estimate.se_fixed < 0.02 * abs(truth)
    assert estimate.effective_sample_size > estimate.forwards_used == 600


def test_values_missing_at_the_source_are_marginalised():
    tokens = SMALL_HMM.sample(300, seed=3)
    observed = np.random.default_rng(4).random(tokens.shape) < 0.7
    tokens = np.where(observed, tokens, -1)
    covariates = TokenCovariates.fit(tokens, observed, 5)
    estimate = estimate_lml(SMALL_HMM.log_prob, tokens, observed, covariates=covariates)
    truth = SMALL_HMM.log_marginal(tokens)[observed.any(axis=1)].mean()
    assert abs(estimate.nats_per_sequence - truth) < 3.5 * estimate.se_fixed
    assert estimate.se_fixed < 0.01 * abs(truth)
    assert estimate.positions.sum() == observed.sum()


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 99))
def test_ranks_and_batches_do_not_change_a_bit(batch_size, world_size, seed):
    tokens, observed = SMALL_HMM.sample(40, seed=5), uneven(40, 12)
    table = np.random.default_rng(1).normal(-2.0, 1.0, 5)

    def log_prob(tokens_BD, mask_BD):
        return table[tokens_BD] * (1 + mask_BD.sum(axis=1, keepdims=True))

    plan = LMLPlan.make(observed, seed=seed)
    sums = np.full(plan.counts_Nk.shape, np.nan)
    for rank in range(world_size):
        for rows, bands in plan.batches(batch_size, rank, world_size):
            mask = plan.masks(rows, bands)
            sums[rows, bands] = masked_sums(log_prob(tokens[rows], mask), mask)
    split = estimate_from_sums(plan, sums)
    whole = estimate_lml(log_prob, tokens, observed, seed=seed, batch_size=16)
    np.testing.assert_array_equal(split.per_sequence, whole.per_sequence)
    assert split.plan_hash == whole.plan_hash == plan.hash


def test_batch_size_changes_a_model_of_floats_by_rounding_only():
    tokens = SMALL_HMM.sample(40, seed=5)
    scores = [
        estimate_lml(SMALL_HMM.log_prob, tokens, batch_size=b).nats_per_sequence for b in (1, 7, 80)
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-9)


def test_what_stands_at_unobserved_positions_has_no_effect():
    tokens, observed = SMALL_HMM.sample(60, seed=5), uneven(60, 12)
    logs = np.log(np.arange(1, 6) / 15)

    def score(filling):
        table = np.where(observed, tokens, filling)
        covariates = TokenCovariates.fit(table, observed, 5)
        return estimate_lml(lambda x, m: logs[x], table, observed, covariates=covariates)

    np.testing.assert_array_equal(score(0).per_sequence, score(3).per_sequence)


def test_skipped_sequences_are_left_out():
    tokens, observed = SMALL_HMM.sample(5, seed=5), np.ones((5, 12), bool)
    observed[[0, 3]] = False
    plan = LMLPlan.make(observed)
    sums = np.where(plan.counts_Nk > 0, -1.0 * plan.counts_Nk, np.nan)
    estimate = estimate_from_sums(plan, sums, tokens)
    assert estimate.sequence_index.tolist() == [1, 2, 4]
    assert estimate.n_sequences == len(estimate.per_sequence) == 3


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_a_value_that_is_not_finite_is_named(value):
    def log_prob(tokens_BD, mask_BD):
        return np.where(tokens_BD == 7, value, -1.0)

    tokens = np.zeros((9, 3), int)
    tokens[4] = 7
    plan = LMLPlan.make(np.ones((9, 3), bool), seed=2)
    with pytest.raises(NonFiniteLogProb, match=r"sequence 4 sums to .*M=\d of 3 positions"):
        estimate_lml(log_prob, tokens, plan=plan, batch_size=1)
    tokens[4] = 0
    assert estimate_lml(log_prob, tokens, plan=plan).nats_per_position == pytest.approx(-1, rel=0.5)


def test_a_sum_that_is_not_finite_is_named():
    plan = LMLPlan.make(np.ones((3, 4), bool), forwards=2)
    sums_Nk = np.full((3, 2), -1.0)
    sums_Nk[2, 1] = np.nan
    with pytest.raises(NonFiniteLogProb, match=r"sequence 2 sums to nan .*band 1; 1 of 6"):
        estimate_from_sums(plan, sums_Nk)


def test_effective_sample_size_is_the_naive_variance_over_the_estimates():
    """Of y at uniform M, from forwards drawn with weight w; too few forwards for a fit here."""
    plan = LMLPlan.make(np.ones((5, 8), bool), forwards=3)
    sums_Nk = -np.random.default_rng(4).gamma(plan.counts_Nk)
    estimate = estimate_from_sums(plan, sums_Nk)
    y_Nk, w_Nk = 8 / plan.counts_Nk * sums_Nk, plan.weights_Nk
    naive = (w_Nk * y_Nk**2).mean() - (w_Nk * y_Nk).mean() ** 2
    expected = naive / ((w_Nk * y_Nk).mean(axis=1).var(ddof=1) / 5)
    assert estimate.effective_sample_size == pytest.approx(expected, rel=1e-12)


def test_an_infinity_where_not_masked_is_ignored():
    estimate = estimate_lml(by_rate(lambda t: -1.0 + 0 * t), np.zeros((40, 6), int))
    assert estimate.nats_per_position == pytest.approx(-1.0, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_torch_values_are_summed_in_float64(dtype):
    torch = pytest.importorskip("torch")
    values = torch.full((2, 1000), -0.1, dtype=getattr(torch, dtype), requires_grad=True)
    mask = np.ones((2, 1000), bool)
    mask[1, 500:] = False
    one = float(values.detach()[0, 0].double())
    np.testing.assert_allclose(masked_sums(values, mask), [1000 * one, 500 * one], rtol=1e-12)


def test_a_single_position_is_scored_exactly():
    joint = Joint.random(length=1, vocabulary_size=2, seed=1)
    tokens = joint.sample(200, seed=2)
    estimate = estimate_lml(joint.log_prob, tokens)
    np.testing.assert_allclose(estimate.per_sequence, joint.log_marginal(tokens), rtol=1e-12)
    assert estimate.se_fixed < 1e-12
    np.testing.assert_allclose(
        estimate.curve.mean_log_prob @ estimate.curve.forwards / 400, estimate.nats_per_sequence
    )


def test_two_symbols():
    joint = Joint.random(length=6, vocabulary_size=2, seed=1)
    tokens = joint.sample(200, seed=2)
    covariates = TokenCovariates.fit(tokens, None, 2)
    estimate = estimate_lml(joint.log_prob, tokens, covariates=covariates)
    truth = joint.log_marginal(tokens).mean()
    assert abs(estimate.nats_per_sequence - truth) < 3.5 * estimate.se_fixed
    assert estimate.se_fixed < 0.03 * abs(truth)


def test_errors_that_cannot_be_known_are_nan():
    tokens = SMALL_HMM.sample(40, seed=5)
    once = estimate_lml(SMALL_HMM.log_prob, tokens, forwards=1)
    assert np.isnan(once.se_fixed)
    assert np.isnan(once.interval(kind="fixed")).all()
    assert np.isfinite(once.interval()).all()
    alone = estimate_lml(SMALL_HMM.log_prob, tokens[:1], forwards=4)
    assert np.isnan(alone.se_population)
    assert np.isnan(alone.effective_sample_size)
    assert np.isfinite(alone.interval(kind="fixed")).all()
    assert alone.residual_variance == DEFAULT_VARIANCE


def test_standard_errors_are_those_of_the_definition():
    """Too few forwards for a fit, z = w y, so both errors can be written out."""
    rng = np.random.default_rng(0)
    for n, k, groups in ((2, 3, None), (8, 1, None), (12, 1, np.arange(12) % 8)):
        plan = LMLPlan.make(np.ones((n, 4), bool), forwards=k, seed=1, groups=groups)
        sums = -rng.exponential(size=(n, k))
        z = plan.weights_Nk * 4 / plan.counts_Nk * sums
        estimate = estimate_from_sums(plan, sums)
        assert estimate.nats_per_sequence == pytest.approx(z.mean())
        steps = ((z[:, 1:] - z[:, :-1]) ** 2).sum() / 2
        fixed = np.sqrt(k / (k - 1) * steps) / (n * k) if k > 1 else np.nan
        assert estimate.se_fixed == pytest.approx(fixed, nan_ok=True)
        population = z.mean(axis=1).std(ddof=1) / np.sqrt(n) if n >= 8 else np.nan
        if groups is not None:
            population = group_standard_error(z[:, 0], groups)[0]
            assert estimate.n_groups == 8
        assert estimate.se_population == pytest.approx(population, nan_ok=True)


def test_scores_per_token_have_the_error_of_a_ratio():
    """Sequences of 1 to 30 tokens, each about one nat: lengths are no noise of the ratio."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 31, (400, 200))
    scores = -lengths + rng.normal(size=lengths.shape) * np.sqrt(lengths)
    ratios = scores.sum(axis=1) / lengths.sum(axis=1)
    made = estimate_lml(SMALL_HMM.log_prob, SMALL_HMM.sample(200, seed=1))
    errors = [
        replace(made, per_sequence=y, positions=x).per(x)[1]
        for y, x in zip(scores, lengths, strict=True)
    ]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(ratios.std(), rel=0.12)
    naive = scores.std(axis=1, ddof=1).mean() / np.sqrt(200) / lengths.mean()
    assert naive > 2 * ratios.std()
    value, error, df = made.per(made.positions)
    assert (value, df) == pytest.approx((made.nats_per_position, 199))
    assert error == pytest.approx(made.se_population / 12)  # equal lengths
    few = replace(made, groups=np.arange(200) % 3)
    assert few.per(few.positions)[1:] == pytest.approx((made.se_fixed / 12, 200))


@pytest.mark.parametrize(("n", "forwards"), [(4, 60), (7, 1), (30, 1)])
def test_too_few_forwards_for_a_fit_are_weighted_only(n, forwards):
    plan = LMLPlan.make(np.ones((n, 9), bool), forwards=forwards, seed=1)
    sums = -np.random.default_rng(0).exponential(size=plan.counts_Nk.shape) * plan.counts_Nk
    covariates, tokens = GuessTable(np.arange(3.0)), np.arange(9 * n).reshape(n, 9) % 3
    estimate = estimate_from_sums(plan, sums, tokens, covariates=covariates)
    weighted = (plan.weights_Nk * 9 / plan.counts_Nk * sums).mean(axis=1)
    fitted = n * forwards * 3 // 4 >= 6 * 3 and n >= 8
    assert np.allclose(estimate.per_sequence, weighted) != fitted
    assert np.isnan(estimate.curve.smooth).all() != fitted


def test_intervals_use_student_t_and_are_of_the_population_from_eight_groups_on():
    for n, kinds in ((7, {"fixed": 2.364624}), (8, {"population": 2.364624, "fixed": 2.306004})):
        plan = LMLPlan.make(np.ones((n, 4), bool), forwards=2, seed=1)
        estimate = estimate_from_sums(plan, -np.random.default_rng(n).exponential(size=(n, 2)))
        for kind, quantile in kinds.items():
            error = {"population": estimate.se_population, "fixed": estimate.se_fixed}[kind]
            low, high = estimate.interval(kind=kind)
            assert (high + low) / 2 == pytest.approx(estimate.nats_per_sequence)
            assert (high - low) / 2 == pytest.approx(quantile * error, rel=1e-5)
        assert estimate.interval() == estimate.interval(kind=next(iter(kinds)))
    plan = LMLPlan.make(np.ones((30, 4), bool), groups=np.arange(30) % 7)
    few = estimate_from_sums(plan, -np.random.default_rng(0).exponential(size=(30, 2)))
    assert (few.scope, few.n_groups) == ("fixed", 7)
    assert np.isnan(few.interval(kind="population")).all()
    with pytest.raises(ValueError, match="level must be between 0 and 1; it is 95"):
        estimate.interval(95)


def test_curve_follows_the_exact_scores():
    tokens = SMALL_HMM.sample(2000, seed=3)
    curve = estimate_lml(SMALL_HMM.log_prob, tokens).curve
    rng = np.random.default_rng(0)
    for count in (1, 6, 12):
        mask = rng.random(tokens.shape).argsort(axis=1).argsort(axis=1) < count
        exact = masked_sums(SMALL_HMM.log_prob(tokens, mask), mask).mean() / count
        smooth = np.interp(count / 12, curve.mask_rate, curve.smooth)
        assert smooth == pytest.approx(exact, abs=0.03)
        nearest = np.abs(curve.mask_count - count).argmin()
        assert abs(curve.mean_log_prob[nearest] - exact) < 4 * curve.se[nearest] + 0.02
    assert curve.forwards.sum() == 4000
    assert (np.diff(curve.mask_rate) >= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, p: estimate_lml(lambda x, m: m[:, 0], t), "one value per position"),
        (lambda t, p: estimate_lml(lambda x, m: m, t[:0]), "of the 0 sequences"),
        (
            lambda t, p: estimate_lml(lambda x, m: m, t[:4], plan=p),
            r"the plan was made for \(6, 12",
        ),
        (lambda t, p: estimate_lml(lambda x, m: m, t, t > 2, plan=p), "observed differs"),
        (lambda t, p: estimate_from_sums(p, np.zeros((6, 3))), r"sums must be \[N, k\] = \(6, 2\)"),
        (
            lambda t, p: estimate_from_sums(p, np.zeros((6, 2)), covariates=GuessTable(t)),
            "pass tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(SMALL_HMM.sample(6, seed=5), LMLPlan.make(np.ones((6, 12), bool)))


def test_token_guesses_are_probabilities():
    """Over all values of the middle token, the first and third guess sum to one."""
    covariates = TokenCovariates.fit(SMALL_HMM.sample(300, seed=2), None, 5)
    for left, right in [(0, 0), (4, 2)]:
        tokens = np.array([[left, middle, right] for middle in range(5)])
        guesses = np.exp(covariates.position_features(tokens)[:, 1])
        np.testing.assert_allclose(guesses[:, [0, 2]].sum(axis=0), 1.0, rtol=1e-12)
        single = np.exp(covariates.position_features(np.arange(5)[:, None])[:, 0])
        assert single[:, 2].sum() == pytest.approx(1.0, rel=1e-12)


def test_token_guesses_learn_the_chain():
    chain = MarkovChain.random_chain(vocabulary_size=4, length=30, seed=3)
    covariates = TokenCovariates.fit(chain.sample(3000, seed=1), None, 4)
    tokens = chain.sample(50, seed=2)
    middle = np.zeros((50, 30), bool)
    middle[:, 15] = True
    exact = chain.log_prob(tokens, middle)[:, 15]
    guess = covariates.position_features(tokens)[:, 15, 2]
    np.testing.assert_allclose(guess, exact, atol=0.15)


def test_unobserved_neighbours_are_not_read():
    tokens = SMALL_HMM.sample(30, seed=2)
    observed = uneven(30, 12, seed=8)
    covariates = TokenCovariates.fit(tokens, observed, 5)
    other = np.where(observed, tokens, -99)
    again = TokenCovariates.fit(other, observed, 5)
    np.testing.assert_array_equal(
        covariates.position_features(tokens, observed), again.position_features(other, observed)
    )
    assert (covariates.position_features(tokens, observed)[~observed] == 0).all()


def test_a_token_outside_the_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"token 5 of sequence 1, position 0 is outside .* 0\.\.4"):
        TokenCovariates.fit(np.array([[0, 1], [5, 2]]), None, 5)


def test_gaussian_guesses_are_the_conditional_densities():
    ppca = PPCA.random(length=4, latent=1, noise_variance=0.5, seed=4)
    covariates = GaussianCovariates.fit(ppca.sample(100_000, seed=1), shrinkage=0.0)
    values, mask = ppca.sample(20, seed=2), np.zeros((20, 4), bool)
    mask[:, 2] = True
    guess = covariates.position_features(values)[:, 2]
    np.testing.assert_allclose(guess[:, 1], ppca.log_prob(values, mask)[:, 2], atol=0.05)
    everything = ppca.log_prob(values, np.ones((20, 4), bool))[:, 2]
    np.testing.assert_allclose(guess[:, 0], everything, atol=0.05)


def test_pilot_recovers_the_variance_law():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.01, 1.0, (20_000, 2))
    law = np.array([2.0, 0.5, 8.0])
    deviation = np.sqrt(law[0] + law[1] / rates + law[2] * rates**8)
    fitted = np.array(fit_residual_variance(rates, deviation * rng.standard_normal(rates.shape)))
    default = np.array(DEFAULT_VARIANCE)
    middle = np.array([1.0, 2.0, 0.5**8])
    expected = 0.9 * law / (middle @ law) + 0.1 * default / (middle @ default)
    np.testing.assert_allclose(fitted, expected, rtol=0.15)


def test_pilot_sharpens_the_plan():
    oracle = PPCA.random(length=64, latent=4, noise_variance=0.2, seed=1)
    tokens = oracle.sample(400, seed=3)
    covariates = GaussianCovariates.fit(oracle.sample(1000, seed=2))
    pilot = estimate_lml(oracle.log_prob, tokens, seed=9, covariates=covariates).residual_variance

    def mean_error(law):
        """The error of one plan is known to 4 % only."""
        shown = np.ones(tokens.shape, bool)
        plans = [LMLPlan.make(shown, seed=100 + s, residual_variance=law) for s in range(12)]
        found = [
            estimate_lml(oracle.log_prob, tokens, plan=plan, covariates=covariates)
            for plan in plans
        ]
        return np.mean([estimate.se_fixed for estimate in found])

    assert mean_error(pilot) < 0.97 * mean_error(DEFAULT_VARIANCE)


@pytest.mark.parametrize("gaps", [(), (0,), (2,), (1, 4), (0, 1, 2, 3), (0, 1, 2, 3, 5)])
def test_controls_are_zero_in_expectation_over_all_masks(gaps):
    """By enumeration, at every M: with gaps, at the ends, and for D = 1 and 2."""
    hmm = HMM.random(states=3, vocabulary_size=4, length=6, seed=1)
    covariates = TokenCovariates.fit(hmm.sample(500, seed=2), None, 4)
    tokens, observed = hmm.sample(1, seed=3), np.ones((1, 6), bool)
    observed[0, list(gaps)] = False
    levels = []
    for size in range(1, observed.sum() + 1):
        masks = masks_of_size(np.flatnonzero(observed[0]), size, 6)
        control_1kC, level_1C = covariates.controls(tokens, observed, masks[None])
        np.testing.assert_allclose(control_1kC.mean(axis=1), 0.0, atol=1e-12)
        levels.append(level_1C)
    assert np.ptp(levels, axis=0).max() == 0.0


class WithoutTheLast:
    """Covariates less their last control."""

    def __init__(self, covariates):
        self.covariates = covariates

    def controls(self, *where):
        control_RkC, level_RC = self.covariates.controls(*where)
        return control_RkC[..., :-1], level_RC[..., :-1]


def test_the_control_that_sees_the_mask_follows_a_chain_of_neighbours():
    """Of a model that predicts from visible neighbours by the same counts, little is left."""
    hmm = HMM.random(states=3, vocabulary_size=4, length=12, seed=1)
    covariates = TokenCovariates.fit(hmm.sample(500, seed=2), None, 4)
    tokens, seen = hmm.sample(512, seed=3), set()

    def log_prob(tokens_BD, mask_BD):
        states = covariates._guesses(tokens_BD, None)[1]
        visible = np.pad(~mask_BD, ((0, 0), (1, 1)))
        state = visible[:, :-2] + 2 * visible[:, 2:]
        seen.update(state[mask_BD].tolist())
        return np.take_along_axis(states, state[..., None], axis=-1)[..., 0]

    ours, without = (
        estimate_lml(log_prob, tokens, covariates=c)
        for c in (covariates, WithoutTheLast(covariates))
    )
    assert seen == {0, 1, 2, 3}
    assert ours.se_fixed < 0.5 * without.se_fixed
