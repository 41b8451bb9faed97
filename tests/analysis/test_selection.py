"""The choice of a search on simulated candidates whose true scores are known."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.analysis import ArmScores
from mptune.analysis.crossed import Array
from mptune.analysis.selection import (
    SearchSelection,
    SeedNoise,
    search_selection,
    seed_noise,
)

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
    assert np.mean(stated) == pytest.approx(np.mean(best), abs=0.08)
    assert np.mean(raw) > 0.015, "the winner's curse, nats per token"
    assert abs(np.mean(shrunken)) < 0.2 * np.mean(raw)
    assert np.mean(covered) > 0.88


def test_probabilities_add_up_and_regret_falls_with_them() -> None:
    found = search_selection(
        searched(np.random.default_rng(1), np.linspace(-42, -40, 6), 0.1), TOKENS
    )
    assert sum(c.probability for c in found.candidates) == pytest.approx(1)
    assert found.candidates[0].expected_regret == min(c.expected_regret for c in found.candidates)
    assert (found.recommended, found.chosen_by, found.seed_sd) == (5, "search", None)


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
