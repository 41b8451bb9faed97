"""The choice of a search on simulated candidates whose true scores are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from mptune.analysis import ArmScores
from mptune.analysis.crossed import Array
from mptune.analysis.ranking import finalists
from mptune.analysis.selection import (
    SearchSelection,
    SeedNoise,
    recommended,
    search_selection,
    seed_noise,
    select_trial,
)
from mptune.errors import NoResultError
from mptune.trial import LMLScore, Prepared, Trial, TrialResult

TOKENS, SEQUENCES = 16.0, 48


def searched(rng: np.random.Generator, truth_A: Array, seed_sd: float) -> dict[int, Array]:
    """Candidates with training noise, and sequences that are hard for all of them."""
    shared_N = 4 * rng.normal(size=SEQUENCES)
    seed_A1 = seed_sd * rng.normal(size=(len(truth_A), 1))
    z_AN = truth_A[:, None] + seed_A1 + shared_N + rng.normal(size=(len(truth_A), SEQUENCES))
    return dict(enumerate(z_AN))


def again(
    rng: np.random.Generator, truth_A: Array, top: list[int], sd: float
) -> dict[int, ArmScores]:
    shared = 4 * rng.normal(size=(1, SEQUENCES))
    return {
        a: ArmScores(
            f"trial {a}",
            truth_A[a] + sd * rng.normal(size=(3, 1)) + shared + rng.normal(size=(3, SEQUENCES)),
            (0, 1, 2),
            TOKENS,
        )
        for a in top
    }


def test_stated_probabilities_and_shrunken_scores_are_honest() -> None:
    rng, sd = np.random.default_rng(0), 0.5
    stated, best, raw, shrunken, covered = [], [], [], [], []
    for _ in range(300):
        truth_A = -40 + 0.5 * rng.normal(size=10)
        found = search_selection(
            searched(rng, truth_A, sd), TOKENS, SeedNoise(sd**2, 20, 30), draws=640
        )
        first = found.candidates[0]
        stated.append(first.probability)
        best.append(truth_A.argmax() == first.trial)
        truth = truth_A[first.trial] / TOKENS
        raw.append(first.nats_per_token - truth)
        shrunken.append(first.shrunken - truth)
        covered.append(abs(first.shrunken - truth) <= first.half_width)
    assert 0.3 < np.mean(best) < 0.7
    assert np.mean(stated) == pytest.approx(np.mean(best), abs=0.06)
    assert np.mean(raw) > 0.015, "the winner's curse, nats per token"
    assert abs(np.mean(shrunken)) < 0.2 * np.mean(raw)
    assert 0.88 < np.mean(covered) < 0.99


def test_two_candidates_by_hand() -> None:
    """With one contrast x of noise v, the posterior is N(k x, k v), k = 1 - v / x²."""
    z_AN = np.random.default_rng(1).normal([[-40.0], [-39.6]], 1.0, (2, SEQUENCES))
    found = search_selection(dict(enumerate(z_AN)), TOKENS, draws=320_000)
    x = (z_AN[1] - z_AN[0]).mean() / math.sqrt(2)
    v = (z_AN[1] - z_AN[0]).var(ddof=1) / 2 / SEQUENCES
    k = 1 - v / x**2
    better, worse = found.candidates
    assert better.trial == 1
    assert better.probability == pytest.approx(ndtr(x * math.sqrt(k / v)), abs=0.005)
    assert better.shrunken - worse.shrunken == pytest.approx(math.sqrt(2) * k * x / TOKENS)
    shared = z_AN.mean(0).var(ddof=1) / SEQUENCES
    assert better.half_width == pytest.approx(1.96 * math.sqrt(k * v / 2 + shared) / TOKENS)
    # E max(0, d) of the difference d = √2 N(k x, k v).
    t, sd = x * math.sqrt(k / v), math.sqrt(2 * k * v)
    density = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    lost = sd * (density - t * ndtr(-t)), sd * (density + t * ndtr(t))
    regrets = better.expected_regret * TOKENS, worse.expected_regret * TOKENS
    assert regrets == pytest.approx(lost, rel=0.02)


def test_the_best_of_the_search_is_recommended_without_a_confirmation() -> None:
    truth_A = np.linspace(-42, -40, 6)
    found = search_selection(searched(np.random.default_rng(1), truth_A, 0.1), TOKENS)
    assert [c.trial for c in found.candidates] == [5, 4, 3, 2, 1, 0]
    assert (found.recommended, found.chosen_by, found.seed_sd) == (5, "search", None)
    assert not found.overturned


@pytest.mark.parametrize("top", [[0, 1], [0, 1, 2]])
def test_every_confirmed_trial_counts_and_one_alone_does_not(top: list[int]) -> None:
    rng, truth_A = np.random.default_rng(5), np.array([-40.0, -39.0, -41.0])
    scored = searched(rng, truth_A, 0.0)
    found = search_selection(scored, TOKENS, None, again(rng, truth_A, top, 0.1))
    confirmed = [c for c in found.candidates if c.confirmation is not None]
    assert sorted(c.trial for c in confirmed) == top
    assert found.recommended == 1
    alone = search_selection(scored, TOKENS, None, again(rng, truth_A, [0], 0.1))
    assert (alone.chosen_by, alone.candidates[0].confirmation) == ("search", None)


def test_one_candidate_is_certain() -> None:
    only = search_selection(searched(np.random.default_rng(1), np.zeros(1), 0), TOKENS)
    assert (only.candidates[0].probability, only.candidates[0].expected_regret) == (1, 0)


def overturned(rng: np.random.Generator) -> SearchSelection:
    """The luckier of two leads in the search, and the better one when they are trained again."""
    truth_A = np.array([-40.0, -39.0, -45.0])
    scored = searched(rng, truth_A + np.array([3.0, 0, 0]), 0.0)
    return search_selection(scored, TOKENS, None, again(rng, truth_A, [0, 1], 0.1))


def test_confirming_overturns_a_lucky_winner() -> None:
    found = overturned(np.random.default_rng(2))
    assert found.candidates[0].trial == 0
    assert (found.recommended, found.overturned, found.chosen_by) == (1, True, "confirmation")
    lucky, better = found.candidates[0].confirmation, found.candidates[1].confirmation
    assert lucky is not None
    assert better is not None
    assert lucky.optimism == pytest.approx(3 / TOKENS, abs=2.5 / TOKENS)
    assert better.probability > 0.95
    assert found.candidates[2].confirmation is None


def test_seed_noise_is_the_interaction_of_arms_and_seeds() -> None:
    rng, sd = np.random.default_rng(3), 0.7
    seeds = tuple(range(400))
    common_S1 = 5 * rng.normal(size=(400, 1))
    arms = [
        ArmScores(name, common_S1 + sd * rng.normal(size=(400, 1)) * np.ones(4), seeds, 1.0)
        for name in "ab"
    ]
    found = seed_noise([arms, arms[:1], []])
    assert found is not None
    assert found.variance**0.5 == pytest.approx(sd, rel=0.1)
    assert (found.degrees, found.runs) == (399, 800)
    assert seed_noise([[]]) is None


# --- from trials --------------------------------------------------------------------------------

PREPARED = Prepared.model_construct(heldout_tokens=480, heldout_sequences=48, bytes_per_token=None)


def trial(number: int, nats: float, stage: str = "search", **fields: Any) -> Trial:
    lml = LMLScore.model_construct(nats_per_token=nats)
    shift = {"far": LMLScore.model_construct(nats_per_token=fields.pop("far", nats))}
    result = TrialResult.model_construct(fingerprint=f"{stage}{number}", lml=lml, lml_shift=shift)
    state = {"stage": stage, "number": number, "state": "COMPLETE", "result": result}
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
    assert (found.recommended, found.overturned, found.seed_runs) == (14, True, 4)
    assert recommended(found, searched).number == 14
    optimism = [c.confirmation.optimism for c in found.candidates if c.confirmation]
    assert optimism == pytest.approx([0.2, 0.0], abs=1e-3)


def test_the_worst_domain_of_the_fresh_runs_decides_if_it_is_asked_to() -> None:
    searched = [trial(0, -2.0, far=-3.0), trial(1, -2.1, far=-2.8), trial(2, -2.2, far=-2.9)]
    found = select_trial(searched, [], {}, PREPARED, scores, by_worst=True)
    assert found is not None
    assert (found.recommended, found.chosen_by) == (1, "worst_domain")
    fresh = [trial(9, -2.1, "confirmation", seed=0, repeats=1, far=-3.5)]
    found = select_trial(searched, fresh, {}, PREPARED, scores, by_worst=True)
    assert found is not None
    assert found.recommended == 2


def test_a_trial_without_a_worst_domain_never_wins() -> None:
    nats = {n: scores(trial(n, -2.0 - n))["nats_per_sequence"] for n in range(3)}
    assert search_selection(nats, 10.0, worst={1: -2.5, 2: -2.4}).recommended == 2


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
    assert [t.number for t in finalists([*found, failed], 9, by_worst=True)] == [0, 2, 1]
