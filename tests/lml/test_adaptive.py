"""Forwards are added until the target is reached or a race is decided, and the intervals hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mptune
from mptune.lml import adaptive
from mptune.lml.adaptive import (
    Side,
    compare_lml,
    estimate_to_target,
    race_lml,
    refine_lml,
    se_per_position,
    sequential_half_width,
)
from mptune.lml.covariates import TokenCovariates
from mptune.lml.estimator import estimate_lml
from mptune.lml.groups import tails
from mptune.models.oracles import HMM, MarkovChain
from tests.simulations import repetitions

HMM_16 = HMM.random(states=4, vocabulary_size=6, length=16, seed=1)
COUNTS = TokenCovariates.fit(HMM_16.sample(1000, seed=2), None, 6)
WORSE = HMM(HMM_16.initial_S, 0.7 * HMM_16.transition_SS + 0.3 / 4, HMM_16.emission_SV, 16)


def test_refining_adds_sequences_and_then_forwards():
    tokens = HMM_16.sample(300, seed=3)
    looks = list(refine_lml(Side.of(HMM_16.log_prob, tokens, covariates=COUNTS)))
    assert [e.n_sequences for e in looks] == [128, 256, 300, 300]
    assert [e.forwards_used for e in looks] == [256, 512, 600, 1200]
    assert sorted(looks[-1].sequence_index) == list(range(300))
    assert len({e.plan_hash for e in looks}) == 4
    fixed = [e.se_fixed for e in looks[2:]]
    assert fixed == sorted(fixed, reverse=True)


def test_every_look_is_an_honest_estimate():
    """Truth of exactly these sequences, in units of the standard error, over 60 replications."""
    tokens = HMM_16.sample(200, seed=3)
    exact_N, by_look = HMM_16.log_marginal(tokens), {256: [], 400: []}
    for seed in range(60):
        side = Side.of(HMM_16.log_prob, tokens, covariates=COUNTS, batch_size=512)
        for look in refine_lml(side, seed=seed, max_forwards=800):
            truth = exact_N[look.sequence_index].mean()
            z = (look.nats_per_sequence - truth) / look.se_fixed
            by_look.setdefault(look.forwards_used, []).append(z)
    for scores in by_look.values():
        assert abs(np.mean(scores)) < 3.5 / np.sqrt(len(scores))
        assert abs(np.std(scores) - 1.0) < 0.35
    assert list(by_look) == [256, 400, 800]


def test_a_target_is_reached_with_no_more_than_it_takes():
    tokens = HMM_16.sample(4000, seed=3)
    loose, tight = (
        estimate_to_target(HMM_16.log_prob, tokens, target_se=t, covariates=COUNTS)
        for t in (0.05, 0.01)
    )
    assert se_per_position(loose) <= 0.05
    assert se_per_position(tight) <= 0.01
    assert loose.forwards_used < tight.forwards_used < 2 * len(tokens)


def test_a_target_out_of_reach_ends_where_more_forwards_cannot_help():
    tokens = HMM_16.sample(64, seed=3)
    estimate = estimate_to_target(HMM_16.log_prob, tokens, target_se=1e-4, covariates=COUNTS)
    assert se_per_position(estimate) > 1e-4
    assert estimate.forwards_used == 128


@pytest.mark.parametrize(("target_se", "ends"), [(0.021, False), (0.019, True)])
def test_more_forwards_go_on_while_they_can_reach_the_target(target_se, ends):
    """Of a variance of 0.02^2 + 0.05^2, forwards of the same 64 sequences take away the second."""
    tokens = HMM_16.sample(64, seed=3)
    estimate = estimate_lml(HMM_16.log_prob, tokens)
    scores_n = np.resize([-1.0, 1.0], 64) * 16 * np.hypot(0.05, 0.02) * np.sqrt(63)
    known = replace(estimate, se_fixed=16 * 0.05, per_sequence=scores_n)
    assert adaptive.finished(known, 64, target_se) == ends
    assert not adaptive.finished(known, 65, target_se)


def test_a_model_without_noise_stops_at_once():
    fair = lambda tokens_BD, mask_BD: np.full(tokens_BD.shape, np.log(0.5))  # noqa: E731
    looks = list(refine_lml(Side.of(fair, np.zeros((1000, 8), int))))
    assert [e.forwards_used for e in looks] == [256]
    assert looks[0].nats_per_sequence == pytest.approx(8 * np.log(0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Side.of(HMM_16.log_prob, np.zeros((3, 4, 5))), "must be \\[N, D\\]"),
        (
            lambda: list(refine_lml(Side.of(HMM_16.log_prob, np.zeros((3, 4)), np.zeros((3, 4))))),
            "nothing to score",
        ),
        (lambda: estimate_to_target(None, np.zeros((3, 4)), target_se=0.0), "must be positive"),
        (lambda: compare_lml(None, None, np.zeros((99, 4))), "fewer than 8 blocks"),
        (lambda: compare_lml(None, None, np.zeros((999, 4)), level=95), "between 0 and 1"),
        (lambda: compare_lml(None, None, np.zeros((999, 4)), block=1), "at least 2 sequences"),
        (
            lambda: list(
                race_lml(Side.of(None, np.zeros((9, 4))), Side.of(None, np.zeros((8, 4))))
            ),
            "same sequences",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_better_model_wins_whichever_comes_first():
    tokens = HMM_16.sample(4000, seed=3)
    for models, verdict in (((HMM_16, WORSE), "a"), ((WORSE, HMM_16), "b")):
        found = compare_lml(*(m.log_prob for m in models), tokens, covariates=COUNTS)
        assert found.verdict == verdict
        low, high = found.interval
        truth = np.subtract(*(m.log_marginal(tokens).mean() for m in models))
        assert low <= truth <= high
        assert found.forwards == found.blocks * 16


def test_a_model_against_itself_is_undecided_to_the_end():
    tokens = HMM_16.sample(200, seed=3)
    found = compare_lml(HMM_16.log_prob, HMM_16.log_prob, tokens, covariates=COUNTS)
    assert (found.verdict, found.difference, found.half_width) == ("undecided", 0.0, 0.0)
    assert found.forwards == 192


def test_no_decision_before_eight_blocks_and_none_beyond_the_cap():
    assert sequential_half_width(np.arange(7.0)) == np.inf
    tokens = HMM_16.sample(4000, seed=3)
    found = compare_lml(HMM_16.log_prob, HMM_16.log_prob, tokens, max_forwards=150)
    assert found.forwards == 144


def test_half_width_is_that_of_the_formula():
    means = np.array([0.3, -0.1, 0.2, 0.5, 0.0, 0.1, 0.4, 0.2, 0.3, -0.2])
    rho2 = (-2 * np.log(0.05) + np.log(-2 * np.log(0.05)) + 1) / 16
    radius = 2 * (10 * rho2 + 1) / (100 * rho2) * np.log(np.sqrt(10 * rho2 + 1) / 0.05)
    expected = 2.262157 / 1.959964 * means.std(ddof=1) * np.sqrt(radius)
    assert sequential_half_width(means) == pytest.approx(expected, rel=1e-6)


def test_half_width_covers_at_all_looks_at_once():
    rng, misses = np.random.default_rng(0), 0
    for _ in range(400):
        means = rng.normal(size=200)
        misses += any(
            abs(means[:t].mean()) > sequential_half_width(means[:t]) for t in range(8, 200, 3)
        )
    assert misses / 400 < 0.05


def test_models_that_cut_text_differently_race_on_the_same_sequences():
    """Pairs of symbols as one: half the positions, another vocabulary, the same likelihood."""
    chain = MarkovChain.random_chain(vocabulary_size=3, length=8, seed=1)
    tokens = chain.sample(2000, seed=2)
    paired = 3 * tokens[:, ::2] + tokens[:, 1::2]
    outcomes = np.indices((9,) * 4).reshape(4, -1).T
    table = np.exp(chain.log_marginal(np.stack([outcomes // 3, outcomes % 3], -1).reshape(-1, 8)))

    from mptune.models.oracles import Joint

    joint = Joint(table.reshape((9,) * 4))
    sides = Side.of(chain.log_prob, tokens), Side.of(joint.log_prob, paired)
    *_, last = race_lml(*sides, max_forwards=640)
    assert last.verdict == "undecided"
    assert abs(last.difference) < last.half_width < 2.0


def test_a_race_takes_blocks_of_whole_groups():
    tokens, groups = HMM_16.sample(600, seed=3), np.repeat(np.arange(60), [4, 16] * 30)
    sides = [Side.of(m.log_prob, tokens, groups=groups) for m in (HMM_16, HMM_16)]
    *_, last = race_lml(*sides)
    for found in (last.a, last.b):
        counts = np.unique(found.groups, return_counts=True)[1]
        assert sorted(counts) == sorted(
            np.unique(groups[found.sequence_index], return_counts=True)[1]
        )
        assert np.isin(counts, [4, 16]).all()
    assert 30 <= last.blocks < 600 // 16
    with pytest.raises(ValueError, match=r"make 7 blocks of whole groups .* use more groups"):
        list(race_lml(*(Side.of(s.log_prob, tokens, groups=np.arange(600) % 7) for s in sides)))
    with pytest.raises(ValueError, match="same groups of sequences"):
        list(race_lml(sides[0], Side.of(HMM_16.log_prob, tokens)))


@pytest.mark.simulation
def test_a_race_of_dependent_sequences_errs_as_seldom_as_it_says():
    """Groups of 16 whose difference has an ICC of 0.5 and, on average, the mean 0."""
    wrong, times = {True: 0, False: 0}, repetitions(20, 200)
    for seed in range(times):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), 16)
        effect_N = rng.normal(size=40)[groups] + rng.normal(size=640)
        models = [lambda x, m: x, lambda x, m: -x]
        tokens = np.repeat(effect_N[:, None], 4, axis=1)
        for known in wrong:
            given = groups if known else None
            found = compare_lml(*models, tokens, groups=given, seed=seed, least=128)
            wrong[known] += found.verdict != "undecided"
    assert wrong[True] <= 0.12 * times
    assert wrong[False] >= 0.25 * times


def value(tokens_BD, mask_BD):
    """Of one position: the score of a sequence is its token, whatever is masked."""
    return tokens_BD


def nothing(tokens_BD, mask_BD):
    return np.zeros(tokens_BD.shape)


@pytest.mark.parametrize("sign", [1, -1])
def test_rare_events_are_seen_before_anything_is_decided(sign):
    """Four of 1200 sequences turn a difference of +1 on all others into one of -0.3."""
    values_N = np.random.default_rng(0).normal(1, 0.1, 1200)
    values_N[:4] -= 400
    sides = [Side.of(m, sign * values_N[:, None]) for m in (value, nothing)]
    early, late = ([*race_lml(*sides, least=least)][-1] for least in (128, 1000))
    assert early.verdict == ("a" if sign > 0 else "b")
    assert early.forwards < 300
    assert (late.verdict, late.forwards) == ("undecided", 1200)
    few = next(race_lml(*sides))
    assert (few.forwards, few.verdict, few.doubt) == (128, "undecided", "few")


@pytest.mark.parametrize("sign", [1, -1])
def test_no_verdict_hangs_on_one_document(sign):
    """A difference that its most favourable group of two just makes significant."""
    rng = np.random.default_rng(1)
    groups, values_N = np.repeat(np.arange(256), 2), rng.normal(size=512)

    def found(shift):
        values_N1 = sign * (values_N[:, None] + shift)
        return compare_lml(value, nothing, values_N1, groups=groups, block=2)

    centred = found(0.0)
    shift = centred.half_width - sign * centred.difference
    just, clear = found(1.001 * shift), found(1.2 * shift)
    assert abs(just.difference) > just.half_width
    assert (just.verdict, just.doubt) == ("undecided", "carried")
    assert (clear.verdict, clear.doubt) == ("a" if sign > 0 else "b", None)


def test_skewed_differences_need_more_sequences():
    values_N1 = np.exp(1.5 * np.random.default_rng(2).normal(size=(1200, 1)))
    found = compare_lml(value, nothing, values_N1)
    assert (found.verdict, found.doubt) == ("undecided", "skewed")
    assert found.tails.needed > 1200 == found.tails.count
    # With the same mean and error, but symmetric:
    even_N1 = values_N1.mean() + values_N1.std() * np.random.default_rng(3).normal(size=(1200, 1))
    assert compare_lml(value, nothing, even_N1).verdict == "a"


def test_a_target_needs_more_sequences_where_few_decide_the_score():
    rng = np.random.default_rng(4)
    normal_N1, skewed_N1 = rng.normal(size=(6000, 1)), np.exp(rng.normal(size=(6000, 1))) / 2.16
    plain, skewed = (estimate_to_target(value, x, target_se=0.1) for x in (normal_N1, skewed_N1))
    assert plain.n_sequences == 128
    assert skewed.n_sequences > 1000
    assert skewed.tails.needed <= skewed.tails.count
    assert se_per_position(skewed) < 0.05
    all_of_them = estimate_to_target(value, skewed_N1[:200], target_se=1.0)
    assert (all_of_them.forwards_used, all_of_them.tails.enough) == (400, False)


def test_tails_are_those_of_the_definition():
    from scipy.stats import skew

    values_n, groups_n = np.random.default_rng(5).gamma(0.5, size=60), np.arange(60) % 20
    found, grouped = tails(values_n), tails(values_n, groups_n)
    squares_n = (values_n - values_n.mean()) ** 2
    assert found.largest == squares_n.argmax()
    assert found.share == pytest.approx(squares_n.max() / squares_n.sum())
    assert found.skewness == pytest.approx(skew(values_n))
    assert found.needed == np.ceil(40 * skew(values_n) ** 2)
    of_means = tails(values_n.reshape(3, 20).mean(axis=0))
    assert vars(grouped) == pytest.approx(vars(of_means))
    equal = tails(-7.1 - 1e-15 * np.arange(50))
    assert (equal.share, equal.skewness, equal.needed, equal.enough) == (0, 0, 0, True)
    assert not tails(np.eye(500)[0]).enough
    with pytest.raises(ValueError, match="at least one value"):
        tails([])


def test_refining_takes_sequences_of_as_many_groups_as_there_are():
    tokens, groups = HMM_16.sample(300, seed=3), np.repeat(np.arange(101), [200, *[1] * 100])
    looks = list(refine_lml(Side.of(HMM_16.log_prob, tokens, groups=groups), max_forwards=600))
    assert looks[0].n_groups == 101
    assert looks[0].se_population > looks[-1].se_fixed
    few = estimate_to_target(
        HMM_16.log_prob, tokens, groups=np.arange(300) % 5, target_se=0.02, max_forwards=5000
    )
    assert few.scope == "fixed"
    assert se_per_position(few) <= 0.02
    assert np.isnan(few.se_population)


def test_public_names():
    assert mptune.compare_lml is compare_lml
    assert mptune.estimate_to_target is estimate_to_target
