"""How sure a search can be of its winner: both noises, and the winner's curse.

Notation, for A candidates scored on the same n sequences:

    x       observed scores, [A]; x_B their contrasts, B = A - 1: noise that all share cancels
    v_B     noise of those: of evaluation (covariance over sequences / n, turned to its axes) plus
            the variance over training seeds
    tau²    spread of the true scores, by moments: E x_B² = tau² + v_B

True contrasts have the prior N(0, tau²), so given x they are normal with mean k x_B and variance
tau² (1 - k), k = tau² / (tau² + v_B): empirical Bayes (Efron & Morris 1975, JASA 70). Choosing the
largest x picks the luckiest noise as well; k takes out as much of it as there is on average,
whatever the number of candidates.

Shape suffixes: A candidates or arms, B contrasts, N sequences, S seeds, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from mptune.analysis.arms import ArmScores, selection_probabilities
from mptune.analysis.comparison import Arms, Scores, arm_scores, scores_of_arms
from mptune.analysis.crossed import Array, estimate
from mptune.analysis.intervals import half_width, lml_half_width
from mptune.analysis.ranking import ranking
from mptune.analysis.robustness import worst_domain
from mptune.errors import NoResultError
from mptune.trial import Message, Prepared, Trial


class Confirmation(Message):
    """A candidate trained again with fresh seeds, and scored on a fresh plan."""

    nats_per_token: float = Field(description="mean over the fresh seeds")
    half_width: float = Field(description="of its 95 % interval, both noises, nats per token")
    seeds: int
    optimism: float = Field(
        description="score in the search minus this: the winner's curse and the change of plan"
    )
    probability: float = Field(description="that it is the best of the confirmed ones")
    expected_regret: float = Field(description="of choosing it among those, nats per token")


class Candidate(Message):
    """One finished trial of the search, as something to choose."""

    trial: int = Field(description="its number")
    nats_per_token: float = Field(description="its score in the search")
    shrunken: float = Field(
        description="what to expect of it, nats per token: drawn to the mean of all candidates as "
        "far as their spread is noise (empirical Bayes), which undoes the winner's curse"
    )
    half_width: float = Field(description="of the 95 % interval of that, nats per token")
    probability: float = Field(description="that it is truly the best of all candidates")
    expected_regret: float = Field(
        description="nats per token lost on average by choosing it instead of the truly best"
    )
    confirmation: Confirmation | None = None


class SearchSelection(Message):
    """The choice that a search makes, and how sure it is."""

    candidates: tuple[Candidate, ...] = Field(description="by score in the search, best first")
    recommended: int = Field(description="number of the trial")
    chosen_by: Literal["search", "confirmation", "worst_domain"] = "search"
    seed_sd: float | None = Field(
        None,
        description="standard deviation of a trial's score over training seeds, without what all "
        "trials share, nats per token; None: not known, so evaluation noise only",
    )
    seed_runs: int = Field(0, description="runs of comparison and confirmation that it rests on")
    overturned: bool = Field(
        False, description="the recommended one was not the search's best: confirming changed it"
    )

    def candidate(self, trial: int) -> Candidate | None:
        """The candidate with this trial number; None if the trial was not scored."""
        return next((c for c in self.candidates if c.trial == trial), None)


@dataclass(frozen=True)
class SeedNoise:
    """What training seeds do to a score beside what they do to all arms alike.

    Attributes:
        variance: nats² per sequence², of one run.
        degrees: degrees of freedom behind it.
        runs: training runs behind it.
    """

    variance: float
    degrees: int
    runs: int


def seed_noise(comparisons: Sequence[Sequence[ArmScores]]) -> SeedNoise | None:
    """Interaction of arms and seeds, pooled over comparisons; None if none has two of each."""
    squares, degrees, runs = 0.0, 0, 0
    for arms in comparisons:
        common = sorted(set.intersection(*(set(arm.seeds) for arm in arms))) if arms else []
        if len(arms) < 2 or len(common) < 2:
            continue
        mean_AS = np.array([arm.at(common).mean(1) for arm in arms])
        centred_AS = mean_AS - mean_AS.mean(1, keepdims=True) - mean_AS.mean(0) + mean_AS.mean()
        squares += float((centred_AS**2).sum())
        degrees += (len(arms) - 1) * (len(common) - 1)
        runs += mean_AS.size
    return SeedNoise(squares / degrees, degrees, runs) if degrees else None


SEED_VARIANCES = 32
"""Equally probable values of the seed variance, given its estimate, that draws are shared among."""


def _posterior(
    z_AN: Array, noise: SeedNoise | None, draws: int, seed: int
) -> tuple[Array, Array, Array]:
    """The candidates' true scores in nats per sequence, given the observed ones.

    Returns:
        Mean [A], standard deviation [A], and draws of the deviations from what all share [Z, A].
    """
    from scipy.linalg import helmert
    from scipy.special import chdtri

    rng, (A, n) = np.random.default_rng(seed), z_AN.shape
    x_A, sigma_AA = z_AN.mean(1), np.atleast_2d(np.cov(z_AN)) / n
    # Contrasts that the sequences' noise leaves uncorrelated; training noise is alike in all.
    contrast_AB = helmert(A).T
    noise_B, turn_BB = np.linalg.eigh(contrast_AB.T @ sigma_AA @ contrast_AB)
    axes_AB = contrast_AB @ turn_BB
    x_B = x_A @ axes_AB
    seed_variances = np.zeros(SEED_VARIANCES)
    if noise is not None:
        # Quantiles of variance * df / chi², the distribution of the variance given its estimate.
        above = 1 - (np.arange(SEED_VARIANCES) + 0.5) / SEED_VARIANCES
        seed_variances = noise.variance * noise.degrees / chdtri(noise.degrees, above)
    means, variances, drawn = [], [], []
    for variance in seed_variances:
        total_B = noise_B + variance
        tau2 = max(0.0, float((x_B**2 - total_B).mean())) if A > 1 else 0.0
        keep_B = tau2 / np.maximum(tau2 + total_B, 1e-300)
        spread_B = tau2 * (1 - keep_B)
        normal_ZB = rng.standard_normal((draws // SEED_VARIANCES, A - 1))
        means.append(x_A.mean() + axes_AB @ (keep_B * x_B))
        variances.append(axes_AB**2 @ spread_B)
        drawn.append(means[-1] + normal_ZB * np.sqrt(spread_B) @ axes_AB.T)
    shared = float(z_AN.mean(0).var(ddof=1)) / n
    spread_A = np.mean(variances, 0) + np.var(means, 0) + shared
    return np.mean(means, 0), np.sqrt(spread_A), np.concatenate(drawn)


def select_trial(
    searched: Sequence[Trial],
    confirmed: Sequence[Trial],
    arms: Arms,
    prepared: Prepared | None,
    scores: Scores,
    by_worst: bool = False,
) -> SearchSelection | None:
    """The choice among the finished trials of a search; None if none is scored.

    Args:
        searched: the trials of the search.
        confirmed: trials that repeat some of them with fresh seeds.
        arms: the trials of each arm of a comparison, which tell the noise of training seeds, too.
        prepared: of the search; None before the data are prepared.
        scores: the stored per-sequence scores of a trial.
        by_worst: choose by the worst domain, where there are domains.
    """
    ranked = ranking(searched)
    if prepared is None:
        return None
    found = ((trial.number, scores(trial).get("nats_per_sequence")) for trial in ranked)
    nats = {number: nats_N for number, nats_N in found if nats_N is not None}
    if not nats:
        return None
    again: dict[int, list[Trial]] = {}
    for trial in confirmed:
        if trial.repeats is not None:
            again.setdefault(trial.repeats, []).append(trial)
    fresh = {
        number: arm
        for number, trials in again.items()
        if (arm := arm_scores(f"trial {number}", trials, prepared, scores)) is not None
    }
    worst: dict[int, float] = {}
    for trial in ranked if by_worst else ():
        results = [t.result for t in again.get(trial.number, ()) if t.result is not None]
        lowest = worst_domain(results or [trial.require_result()])
        if lowest is not None:
            worst[trial.number] = lowest[1]
    return search_selection(
        nats,
        prepared.heldout_tokens / prepared.heldout_sequences,
        seed_noise([list(fresh.values()), scores_of_arms(arms, prepared, scores)]),
        fresh,
        worst or None,
    )


def recommended(selection: SearchSelection | None, searched: Sequence[Trial]) -> Trial:
    """The trial to adopt: the selected one, else the one with the highest LML.

    Raises:
        NoResultError: no trial has finished.
    """
    ranked = ranking(searched)
    if not ranked:
        raise NoResultError("no trial has finished, so there is nothing to recommend")
    number = selection.recommended if selection else ranked[0].number
    return next((trial for trial in ranked if trial.number == number), ranked[0])


def score_of(selection: SearchSelection | None, trial: Trial) -> tuple[float, float]:
    """LML of a finished trial and the half-width of its 95 % interval, nats per token.

    Both are those of the confirmation, if the trial was confirmed.
    """
    candidate = selection.candidate(trial.number) if selection else None
    if candidate and candidate.confirmation:
        return candidate.confirmation.nats_per_token, candidate.confirmation.half_width
    return trial.nats_per_token, lml_half_width(trial.require_result().lml)


def search_selection(
    scores: Mapping[int, Array],
    tokens_per_sequence: float,
    noise: SeedNoise | None = None,
    confirmed: Mapping[int, ArmScores] | None = None,
    worst: Mapping[int, float] | None = None,
    draws: int = 6400,
    seed: int = 0,
) -> SearchSelection:
    """The choice among the finished trials of a search.

    Args:
        scores: number of each trial -> nats per sequence, [N], the same sequences for all.
        tokens_per_sequence: mean number of observed positions per sequence.
        noise: of training seeds; None leaves evaluation noise only.
        confirmed: number of a trial -> its scores with fresh seeds on a fresh plan. If at least
            two share a seed, the best of those is recommended, else the best of the search.
        worst: number of a trial -> its score at its worst domain, which decides instead.

    Raises:
        ValueError: `scores` is empty.
    """
    if not scores:
        raise ValueError("no trial is scored, so there is nothing to choose")
    z_AN = np.stack(list(scores.values()))
    mean_A, se_A, drawn_ZA = _posterior(z_AN, noise, draws, seed)
    best_Z = drawn_ZA.argmax(1)
    probability_A = np.bincount(best_Z, minlength=len(z_AN)) / len(best_Z)
    regret_A = (drawn_ZA.max(1, keepdims=True) - drawn_ZA).mean(0)
    searched = {number: float(x) for number, x in zip(scores, z_AN.mean(1), strict=True)}
    again = _confirmations(confirmed or {}, searched, tokens_per_sequence)
    rows = zip(searched.items(), mean_A, se_A, probability_A, regret_A, strict=True)
    candidates = [
        Candidate(
            trial=number,
            nats_per_token=x / tokens_per_sequence,
            shrunken=float(mean) / tokens_per_sequence,
            half_width=half_width(float(se)) / tokens_per_sequence,
            probability=float(probability),
            expected_regret=float(regret) / tokens_per_sequence,
            confirmation=again.get(number),
        )
        for (number, x), mean, se, probability, regret in rows
    ]
    candidates.sort(key=lambda c: (-c.nats_per_token, c.trial))

    def deciding(c: Candidate) -> float:
        if worst is not None:
            return worst.get(c.trial, -math.inf)
        return c.confirmation.nats_per_token if c.confirmation else c.nats_per_token

    # Of equals `max` takes the first, which is the better one in the search.
    chosen = max([c for c in candidates if c.confirmation] or candidates, key=deciding)
    chosen_by: Literal["search", "confirmation"] = "confirmation" if again else "search"
    return SearchSelection(
        candidates=tuple(candidates),
        recommended=chosen.trial,
        chosen_by=chosen_by if worst is None else "worst_domain",
        seed_sd=noise.variance**0.5 / tokens_per_sequence if noise else None,
        seed_runs=noise.runs if noise else 0,
        overturned=chosen is not candidates[0],
    )


def _confirmations(
    confirmed: Mapping[int, ArmScores], searched: Mapping[int, float], tokens_per_sequence: float
) -> dict[int, Confirmation]:
    """By number of the trial; empty unless at least two can be compared.

    `searched` has the score of every trial in the search, nats per sequence.
    """
    arms = {number: arm for number, arm in confirmed.items() if number in searched}
    common = set.intersection(*(set(arm.seeds) for arm in arms.values())) if arms else set()
    if len(arms) < 2 or not common:
        return {}
    found = {}
    chances = selection_probabilities(list(arms.values()))
    for (number, arm), selection in zip(arms.items(), chances, strict=True):
        mean = estimate(arm.nats_per_sequence_SN)
        found[number] = Confirmation(
            nats_per_token=mean.mean / arm.tokens_per_sequence,
            half_width=mean.half_width(0.05) / arm.tokens_per_sequence,
            seeds=len(arm.seeds),
            optimism=searched[number] / tokens_per_sequence - mean.mean / arm.tokens_per_sequence,
            probability=selection.probability,
            expected_regret=selection.expected_regret / arm.tokens_per_sequence,
        )
    return found
