"""The choice of a search on simulated candidates whose true scores are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mptune.analysis.comparison import ComparisonReport, chosen_policy
from mptune.analysis.crossed import Array
from mptune.analysis.posterior import MeasuredPoints, draw_scores
from mptune.analysis.ranking import finalists
from mptune.analysis.selection import (
    Runs,
    Scored,
    SearchSelection,
    _doubt,
    _evaluation,
    recommended,
    search_selection,
    select_trial,
)
from mptune.errors import NoResultError
from mptune.trial import Cost, LMLScore, Prepared, Trial, TrialResult

SEQUENCES = 48


def scored(rng: np.random.Generator, mean: float, seed_sd: float, runs: int, plan: int) -> Scored:
    """Runs with training noise, on sequences that are hard for every candidate."""
    shared_N = 4 * np.random.default_rng([9, plan]).normal(size=SEQUENCES)
    seed_S1 = seed_sd * rng.normal(size=(runs, 1))
    nats_SN = mean + seed_S1 + shared_N + 0.1 * rng.normal(size=(runs, SEQUENCES))
    se = float(nats_SN.mean(0).std(ddof=1)) / math.sqrt(SEQUENCES)
    return Scored(tuple(range(runs)), nats_SN, se)


def searched(
    rng: np.random.Generator, truth_A: Array, seed_sd: float, fresh: tuple[int, ...] = ()
) -> dict[int, Runs]:
    """Candidates that were trained once, some of them again with two fresh seeds."""
    return {
        a: Runs(
            scored(rng, truth, seed_sd, 1, 0),
            scored(rng, truth, seed_sd, 2, 1) if a in fresh else None,
        )
        for a, truth in enumerate(truth_A)
    }


def test_probabilities_regret_and_expected_scores_are_true() -> None:
    """Equal candidates, and candidates that differ by half a seed SD to four.

    Of equal ones, a method that plugs in its estimate of the spread stated 83 % where 20 % is true.
    """
    rng, R, A = np.random.default_rng(0), 120, 5
    stated, true, missed, lost, covered = [], [], 0.0, 0.0, []
    for spread in (0.0, 0.5, 1.0, 2.0, 4.0):
        truth_RA = spread * rng.normal(size=(R, A))
        run_RAC = truth_RA[..., None] + rng.normal(size=(R, A, 3)) + [0.0, 0.3, 0.3]
        is_top_RA = run_RAC[..., 0].argsort(1).argsort(1) >= A - 2
        run_RAC[..., 1:][~is_top_RA] = np.nan
        seen = MeasuredPoints(
            run_AC=run_RAC,
            plan_C=np.array([0, 1, 1]),
            evaluation_AP=np.full((R, A, 2), 1e-4),
            is_candidate_A=np.full(A, True),
            out_of_play_A=np.zeros(A),
            shift=0.1,
        )
        theta_ZRA, _ = draw_scores(seen, 1, 150)
        at, mean_RA = np.arange(R), theta_ZRA.mean(0)
        best = mean_RA.argmax(1)
        probability_RA = (theta_ZRA.argmax(2)[..., None] == np.arange(A)).mean(0)
        stated.append(float(probability_RA[at, best].mean()))
        true.append(float((truth_RA.argmax(1) == best).mean()) if spread else 1 / A)
        lost += float((theta_ZRA.max(2) - theta_ZRA[:, at, best]).mean())
        missed += float((truth_RA.max(1) - truth_RA[at, best]).mean())
        error_ZR = np.abs(theta_ZRA[:, at, best] - mean_RA[at, best])
        error_R = np.abs(truth_RA[at, best] - mean_RA[at, best])
        covered.append(float((error_R < np.quantile(error_ZR, 0.95, axis=0)).mean()))
    assert stated[0] < 0.6
    assert np.mean(stated) == pytest.approx(np.mean(true), abs=0.08)
    assert 0.7 < lost / missed < 2.0
    assert 0.9 < np.mean(covered) < 0.99


def test_a_known_spread_and_known_noise_give_the_conjugate_posterior() -> None:
    """Many candidates and many seeds: theta is normal with mean k x and variance tau² (1 - k)."""
    rng, A, S, tau, sigma = np.random.default_rng(1), 400, 60, 1.0, 4.0
    truth_A = tau * rng.normal(size=A)
    run_AS = truth_A[:, None] + sigma * rng.normal(size=(A, S))
    x_A = run_AS.mean(1)
    seen = MeasuredPoints(
        run_AC=run_AS,
        plan_C=np.zeros(S, int),
        evaluation_AP=np.zeros((A, 2)),
        is_candidate_A=np.full(A, True),
        out_of_play_A=np.zeros(A),
        shift=0.0,
    )
    theta_ZA, variance_ZA = draw_scores(seen, 4, 100)
    k = tau**2 / (tau**2 + sigma**2 / S)
    error_A = theta_ZA.mean(0) - (x_A.mean() + k * (x_A - x_A.mean()))
    assert float(np.sqrt((error_A**2).mean())) < 0.05
    assert float(theta_ZA.std(0).mean()) == pytest.approx(tau * math.sqrt(1 - k), rel=0.06)
    assert float(variance_ZA.mean()) == pytest.approx(sigma**2, rel=0.05)


def test_noisier_policies_are_shrunk_more() -> None:
    """Two candidates of equal score and two seeds each; the law of one leaves counts out."""
    rng = np.random.default_rng(2)
    noisy = [Runs(scored(rng, -1.0, 1.0, 3, 0), None, 1.0) for _ in range(8)]
    quiet = [Runs(scored(rng, -1.0, 0.05, 3, 0), None, 0.0) for _ in range(8)]
    points = {
        a: Runs(scored(rng, truth, 0.0, 1, 0), None, out)
        for a, (truth, out) in enumerate([(0.5, 1.0), (0.5, 0.0), *[(-0.5, 0.0)] * 4])
    }
    found = search_selection(points, [*noisy, *quiet])
    first, second = (found.candidate(a) for a in (0, 1))
    assert first is not None
    assert second is not None
    assert (first.expected or 0.0) < (second.expected or 0.0) - 0.1
    assert (first.half_width_total or 0.0) > 1.2 * (second.half_width_total or 1.0)
    assert found.seed_sd is not None
    assert found.seed_sd[1] > 5 * found.seed_sd[0]


def test_the_order_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    points = searched(rng, np.linspace(-1, 1, 5), 0.5, fresh=(3, 4))
    others = [Runs(scored(rng, 0.0, 0.5, n, 0)) for n in (2, 3)]
    found = search_selection(points, others)
    turned = search_selection(dict(reversed(points.items())), others[::-1])
    assert turned == found


def test_without_a_repeated_point_there_is_no_probability() -> None:
    points = searched(np.random.default_rng(1), np.linspace(-2, 0, 6), 0.1)
    found = search_selection(points)
    assert [c.trial for c in found.candidates] == [5, 4, 3, 2, 1, 0]
    assert (found.recommended, found.chosen_by, found.seed_sd) == (5, "search", None)
    assert not found.overturned
    for c in found.candidates:
        unknown = (c.probability, c.expected_regret, c.expected, c.half_width, c.half_width_total)
        assert unknown == (None,) * 5
    one = {0: points[0]}
    assert search_selection(one).candidates[0].probability is None


def test_one_repeated_point_anywhere_is_enough() -> None:
    rng = np.random.default_rng(4)
    points = searched(rng, np.linspace(-2, 0, 4), 0.1)
    elsewhere = search_selection(points, [Runs(scored(rng, 0.0, 0.1, 2, 0))])
    assert elsewhere.seed_runs == 2
    assert sum(c.probability or 0.0 for c in elsewhere.candidates) == pytest.approx(1)
    once_more = {a: Runs(r.searched, scored(rng, a - 2, 0.1, 1, 1)) for a, r in points.items()}
    assert search_selection(once_more).candidates[0].probability is not None


def test_the_posterior_weighs_all_runs_of_a_candidate() -> None:
    """Lucky once, and 3 nats lower in two fresh runs: these weigh twice as much."""
    truth_A = np.array([0.0, 2.0, -5.0, -5.5, -4.5])
    found = overturned(truth_A)
    assert found.candidates[0].trial == 0
    assert (found.recommended, found.overturned, found.chosen_by) == (1, True, "confirmation")
    lucky, better = found.candidates[0], found.candidates[1]
    assert lucky.confirmation is not None
    assert lucky.confirmation.optimism == pytest.approx(3.0, abs=1.5)
    assert lucky.runs == 3
    assert lucky.expected is not None
    assert lucky.expected < lucky.nats_per_token - 1.0
    assert (better.probability or 0.0) > (lucky.probability or 0.0)
    assert found.candidates[2].confirmation is None


def overturned(truth_A: Array) -> SearchSelection:
    """The first is 3 nats too lucky in the search; the first two are trained again."""
    rng = np.random.default_rng(2)
    points = searched(rng, truth_A, 0.3, fresh=(0, 1))
    lucky = Scored((0,), points[0].searched.nats_SN + 3, points[0].searched.se)
    return search_selection({**points, 0: Runs(lucky, points[0].fresh)})


def test_the_level_of_a_fresh_plan_does_not_matter() -> None:
    """Another plan has other sequences; only differences within a plan count."""
    rng = np.random.default_rng(6)
    points = searched(rng, np.array([0.0, -0.2, -0.4]), 0.2, fresh=(0, 1, 2))

    def shifted(nats: float) -> SearchSelection:
        moved = {}
        for a, runs in points.items():
            assert runs.fresh is not None
            fresh = Scored((0, 1), runs.fresh.nats_SN + nats, runs.fresh.se)
            moved[a] = Runs(runs.searched, fresh)
        return search_selection(moved)

    chances = [[c.probability or 0.0 for c in shifted(nats).candidates] for nats in (0.0, 0.5)]
    assert chances[0] == pytest.approx(chances[1], abs=0.03)


def test_expected_scores_carry_the_noise_of_the_sequences() -> None:
    points = searched(np.random.default_rng(7), np.array([0.0, -0.1]), 0.01, fresh=(0, 1))
    found = search_selection(points)
    sequences = 1.96 * points[0].searched.se
    for c in found.candidates:
        assert c.half_width == pytest.approx(sequences, rel=0.15)
        assert c.half_width_total == pytest.approx(sequences, rel=0.15)


@pytest.mark.parametrize("points", [1, 2, 4])
@pytest.mark.parametrize("design_effect", [1.0, 4.0])
def test_evaluation_noise_is_split_into_own_and_shared(points: int, design_effect: float) -> None:
    """Sequences that belong together make the standard errors, and both parts, larger."""
    rng, n = np.random.default_rng(8), 20_000
    own_K = np.array([1.0, 1.0, 0.25, 0.0])[:points]
    z_KN = 2 * rng.normal(size=n) + np.sqrt(own_K)[:, None] * rng.normal(size=(points, n))
    ses = np.sqrt(design_effect * z_KN.var(1, ddof=1) / n)
    seen = [Scored((0,), z[None], se) for z, se in zip(z_KN, ses, strict=True)]
    found_K, shared = _evaluation(seen)
    per_sequence = n / design_effect
    if points == 1:  # one point alone: all of it is shared
        own_K, expected = np.zeros(1), 5.0
    else:
        expected = 4.0
    assert found_K * per_sequence == pytest.approx(own_K, abs=0.12)
    assert shared * per_sequence == pytest.approx(expected, rel=0.05)


def test_what_a_seed_does_to_all_candidates_does_not_decide() -> None:
    """Four seeds with large effects that all candidates share, and small ones of their own."""
    rng, A = np.random.default_rng(10), 4
    run_AC = np.linspace(0.0, 0.9, A)[:, None] + 0.1 * rng.normal(size=(A, 4))
    chances = []
    for common in (0.0, 3.0):
        seen = MeasuredPoints(
            run_AC=run_AC + common * np.array([-1.2, -0.4, 0.4, 1.2]),
            plan_C=np.zeros(4, int),
            evaluation_AP=np.zeros((A, 2)),
            is_candidate_A=np.full(A, True),
            out_of_play_A=np.zeros(A),
            shift=0.0,
        )
        theta_ZA, variance_ZA = draw_scores(seen, 16, 50)
        chances.append(float((theta_ZA.argmax(1) == A - 1).mean()))
        level_Z = theta_ZA.mean(1) - run_AC.mean()
    assert float(np.median(variance_ZA)) == pytest.approx(9.0, rel=0.4), "of one run"
    # A new seed moves the scores of all: a normal error with the standard deviation 3 / sqrt(4).
    assert float(np.median(np.abs(level_Z))) == pytest.approx(0.67 * 1.5, rel=0.3)
    assert min(chances) > 0.9


def test_candidates_that_are_far_below_do_not_make_the_good_ones_differ() -> None:
    """Six equal candidates and six that are 30 seed SDs worse; two runs of each."""
    rng, A = np.random.default_rng(3), 12
    run_AC = np.repeat([0.0, -30.0], A // 2)[:, None] + rng.normal(size=(A, 2))
    seen = MeasuredPoints(
        run_AC=run_AC,
        plan_C=np.zeros(2, int),
        evaluation_AP=np.zeros((A, 2)),
        is_candidate_A=np.full(A, True),
        out_of_play_A=np.zeros(A),
        shift=0.0,
    )
    theta_ZA, _ = draw_scores(seen, 16, 60)
    kept = theta_ZA.mean(0)[: A // 2].std() / run_AC.mean(1)[: A // 2].std()
    assert kept < 0.7, "with one spread it is 0.9"
    assert np.bincount(theta_ZA.argmax(1), minlength=A).max() / len(theta_ZA) < 0.5
    assert theta_ZA.mean(0)[A // 2 :] == pytest.approx(run_AC.mean(1)[A // 2 :], abs=1.5)


def test_a_candidate_of_which_little_is_known_is_probably_in_the_larger_cluster() -> None:
    """Halfway between ten and three candidates: the odds are 11 to 4 (Dirichlet, counts plus 1)."""
    run_AC = np.repeat([0.0, -30.0, -15.0], (10, 3, 1))[:, None]
    run_AC = run_AC + np.random.default_rng(3).normal(size=(14, 2))
    seen = MeasuredPoints(
        run_AC=run_AC,
        plan_C=np.zeros(2, int),
        evaluation_AP=np.r_[np.zeros((13, 2)), np.full((1, 2), 300.0)],
        is_candidate_A=np.full(14, True),
        out_of_play_A=np.zeros(14),
        shift=0.0,
    )
    theta_Z = draw_scores(seen, 16, 100)[0][:, -1]
    odds = np.mean(np.abs(theta_Z) < 7) / np.mean(np.abs(theta_Z + 30) < 7)
    assert 2.0 < odds < 4.0


def test_a_candidate_is_on_the_front_if_none_that_costs_no_more_is_better() -> None:
    """Costs 1, 1.02, 3 and 3: the second and the fourth are worse than one that is no dearer."""
    rng = np.random.default_rng(2)
    costs = dict(enumerate((1.0, 1.02, 3.0, 3.0)))
    truths = dict(enumerate((0.0, -3.0, 3.0, -1.0)))
    runs = {a: scored(rng, mean, 0.2, 3, 0) for a, mean in truths.items()}
    points = {a: Runs(found, flops=costs[a]) for a, found in runs.items()}
    found = {c.trial: c for c in search_selection(points).candidates}
    on_front = [found[a].on_front for a in costs]
    assert on_front == pytest.approx([1.0, 0.0, 1.0, 0.0], abs=0.02)
    assert found[0].probability == pytest.approx(0.0, abs=0.02)
    same = {a: Runs(found, flops=1.0) for a, found in runs.items()}
    assert {c.on_front for c in search_selection(same).candidates} == {None}


def test_more_runs_gain_no_more_than_what_the_choice_loses() -> None:
    """A candidate that is better by 30 in 3 of 1000 draws: normal tails would promise more."""
    theta_ZA = np.zeros((1000, 2))
    theta_ZA[:, 1] = np.where(np.arange(1000) < 3, 30.0, -1.0)
    gains = _doubt([7, 8], 0, theta_ZA, np.full(2, 1e-3), 0.0)["gains"]
    assert [gain.trial for gain in gains] == [8] * 5
    assert [gain.nats_per_token for gain in gains] == pytest.approx([0.09] * 5)


def test_a_difference_that_does_not_matter_is_a_nat_or_half_of_what_seeds_do() -> None:
    points = searched(np.random.default_rng(3), np.linspace(-1, 1, 4), 0.5, fresh=(2, 3))
    of_seeds, of_nat = (search_selection(points, draws=640, nat=nat) for nat in (0.0, 10.0))
    assert of_seeds.seed_sd is not None
    low, high = (math.sqrt(0.5) * sd for sd in of_seeds.seed_sd)
    assert of_seeds.delta is not None
    assert low <= of_seeds.delta <= high
    assert (of_nat.delta, of_nat.within) == (10.0, 1.0)


def test_equal_runs_leave_no_noise_but_give_numbers() -> None:
    same = Scored((0, 1), np.zeros((2, SEQUENCES)), 0.0)
    found = search_selection({0: Runs(same), 1: Runs(Scored((0, 1), same.nats_SN - 1, 0.0))})
    assert found.recommended == 0
    assert found.candidates[0].probability == pytest.approx(1.0, abs=0.01)


# --- from trials --------------------------------------------------------------------------------

PREPARED = Prepared.model_construct(heldout_tokens=480, heldout_sequences=48, length=10)


class Point:
    """The part of a TrialSpec that says which runs are of one point."""

    def __init__(self, policy: str, prepared: Prepared) -> None:
        self.policy, self.prepared = policy, prepared

    def run_key(self) -> str:
        return self.policy


def trial(number: int, nats: float, stage: str = "search", **fields: Any) -> Trial:
    errors = {"se_per_token": 0.002, "df_population": 99, "groups": 100, "se_population": 0.1}
    lml = LMLScore.model_construct(nats_per_token=nats, **errors)
    far = fields.pop("far", nats)
    shift = {"far": LMLScore.model_construct(nats_per_token=far, **errors)}
    cost = Cost.model_construct(flops=1e9)
    result = TrialResult.model_construct(
        fingerprint=f"{stage}{number}", lml=lml, lml_shift=shift, cost=cost
    )
    state: dict[str, Any] = {"stage": stage, "number": number, "state": "COMPLETE"}
    state |= {"result": result, "policy": {"kind": "uniform"}}
    return Trial.model_construct(**state, **fields)


def scores(trial: Trial) -> dict[str, Array]:
    """A little noise around the score of the trial."""
    rng = np.random.default_rng(trial.number)
    return {"nats_per_sequence": 10 * trial.nats_per_token + 0.01 * rng.normal(size=48)}


def test_a_confirmation_is_joined_to_its_trial_by_number() -> None:
    searched = [trial(3, -2.0), trial(14, -2.1)]
    confirmed = [
        trial(n, nats, "confirmation", seed=n // 2, repeats=of)
        for n, (of, nats) in enumerate([(3, -2.2), (14, -2.1), (3, -2.2), (14, -2.1)])
    ]
    found = select_trial(searched, confirmed, {}, PREPARED, scores)
    assert found is not None
    assert (found.recommended, found.overturned, found.seed_runs) == (14, True, 6)
    assert recommended(found, searched).number == 14
    optimism = [c.confirmation.optimism for c in found.candidates if c.confirmation]
    assert optimism == pytest.approx([0.2, 0.0], abs=1e-3)


def test_a_confirmation_is_divided_by_the_tokens_of_its_own_plan() -> None:
    """Its sequences are half as long, and so are its nats per sequence."""
    fresh_plan = PREPARED.model_copy(update={"heldout_tokens": 240})
    searched = [trial(0, -2.0), trial(1, -2.1)]
    confirmed = [
        trial(n, nats / 2, "confirmation", seed=n // 2, repeats=of).model_copy(
            update={"spec": Point(str(of), fresh_plan)}
        )
        for n, (of, nats) in enumerate([(0, -2.0), (1, -2.1), (0, -2.0), (1, -2.1)])
    ]
    found = select_trial(searched, confirmed, {}, PREPARED, scores)
    assert found is not None
    fresh = [c.confirmation.nats_per_token for c in found.candidates if c.confirmation]
    assert fresh == pytest.approx([-2.0, -2.1], abs=0.01)


def test_an_arm_of_the_same_point_adds_its_runs() -> None:
    def of_point(trial: Trial, policy: str) -> Trial:
        return trial.model_copy(update={"spec": Point(policy, PREPARED)})

    searched = [of_point(trial(0, -2.0), "a"), of_point(trial(1, -2.1), "b")]
    arms = {
        name: [of_point(trial(2 * s + k, -2.3, "comparison", seed=s), name) for s in range(2)]
        for k, name in enumerate("ac")
    }
    found = select_trial(searched, [], arms, PREPARED, scores)
    assert found is not None
    assert [c.runs for c in found.candidates] == [3, 1]
    assert found.seed_runs == 5
    expected = found.candidates[0].expected
    assert expected is not None
    assert expected < -2.05, "the two others of its three runs scored -2.3"


def test_a_confirmation_counts_for_its_point_whichever_seed_scored_best() -> None:
    """It names the trial that it repeated; another seed of that point may score higher later."""
    found = [trial(n, nats, seed=n) for n, nats in enumerate([-2.0, -2.1, -1.9])]
    searched = [t.model_copy(update={"spec": Point("aba"[t.number], PREPARED)}) for t in found]
    fresh = [trial(n, -2.0, "confirmation", seed=9 + n, repeats=n, far=-3.0) for n in range(2)]
    made = select_trial(searched, fresh, {}, PREPARED, scores)
    assert made is not None
    assert {c.trial: c.runs for c in made.candidates} == {2: 3, 1: 2}
    assert all(c.confirmation for c in made.candidates)


def test_the_worst_domain_of_the_fresh_runs_decides_if_it_is_asked_to() -> None:
    searched = [trial(0, -2.0, far=-3.0), trial(1, -2.1, far=-2.8), trial(2, -2.2, far=-2.9)]
    found = select_trial(searched, [], {}, PREPARED, scores, rule="worst_domain")
    assert found is not None
    assert (found.recommended, found.chosen_by) == (1, "worst_domain")
    fresh = [trial(9, -2.1, "confirmation", seed=0, repeats=1, far=-3.5)]
    found = select_trial(searched, fresh, {}, PREPARED, scores, rule="worst_domain")
    assert found is not None
    assert found.recommended == 2


def test_weights_of_domains_decide_if_they_are_asked_to() -> None:
    """On held-out data the first is best, on `far` the last, on a mean the middle one."""
    searched = [trial(0, -2.0, far=-3.0), trial(1, -2.05, far=-2.55), trial(2, -2.4, far=-2.1)]
    for rule, best, weighted in (
        ({"heldout": 4, "far": 1}, 1, -2.15),
        ({"heldout": 1, "far": 0.01}, 0, (-2.0 - 0.03) / 1.01),
        ({"far": 2}, 2, -2.1),
    ):
        found = select_trial(searched, [], {}, PREPARED, scores, rule=rule)
        assert found is not None
        assert (found.recommended, found.chosen_by) == (best, "weights")
        assert found.weighted_mean == pytest.approx(weighted)
        assert {part.name: part.weight for part in found.weighted} == rule
        assert finalists(searched, 1, rule)[0].number == best
    fresh = [trial(9, -2.1, "confirmation", seed=0, repeats=2, far=-2.2)]
    found = select_trial(searched, fresh, {}, PREPARED, scores, rule={"heldout": 4, "far": 1})
    assert found is not None
    assert (found.recommended, found.weighted_mean) == (2, pytest.approx(-2.12))


def test_a_trial_without_a_worst_domain_never_wins() -> None:
    points = searched(np.random.default_rng(0), np.array([0.0, -1.0, -2.0]), 0.1)
    assert search_selection(points, decisive={1: -2.5, 2: -2.4}).recommended == 2


def test_a_trial_whose_scores_were_not_kept_is_no_candidate() -> None:
    searched = [trial(0, -2.0), trial(1, -2.1)]
    found = select_trial(searched, [], {}, PREPARED, lambda t: scores(t) if t.number else {})
    assert found is not None
    assert [c.trial for c in found.candidates] == [1]
    assert select_trial(searched, [], {}, PREPARED, lambda t: {}) is None
    assert recommended(None, searched).number == 0
    with pytest.raises(NoResultError, match="no trial has finished"):
        recommended(None, [])


def test_finalists_are_the_best_and_the_same_point_counts_once() -> None:
    twin = trial(4, -1.9).model_copy(update={"same_as": 1})
    twin = twin.model_copy(update={"result": trial(1, -1.9).result})
    found = [trial(0, -2.0, far=-2.1), trial(1, -1.9, far=-3.0), twin, trial(2, -2.2, far=-2.2)]
    failed = trial(3, math.nan)
    assert [t.number for t in finalists([*found, failed], 2)] == [1, 0]
    assert [t.number for t in finalists([*found, failed], 9, rule="worst_domain")] == [0, 2, 1]


def test_of_several_arms_that_beat_the_searchs_best_the_best_one_is_chosen() -> None:
    arms = {
        name: (trial(n, nats, "comparison", arm=name, policy_label=name, same_as=None),)
        for n, (name, nats) in enumerate([("base", -2.1), ("a bit", -2.0), ("far", -1.5)])
    }
    won = [SimpleNamespace(arm=a, baseline="base", verdict="better") for a in ("a bit", "far")]
    compared = ComparisonReport.model_construct(baseline="base", arms=arms, differences=won)
    assert chosen_policy(trial(7, -2.05, policy_label="base"), compared) is arms["far"][0]
    other = trial(7, -2.05, policy_label="another")
    assert chosen_policy(other, compared) is other
