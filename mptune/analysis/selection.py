"""How sure a search can be of its winner: both noises, and the winner's curse.

Notation, for A candidates scored on the same n sequences:

    x       observed scores, [A]; x_B their contrasts, B = A - 1: what all share decides nothing
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
from mptune.analysis.crossed import Array, estimate
from mptune.trial import Message


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

    trial: int
    label: str
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
        description="standard deviation of a trial's score over training seeds, beside what all "
        "trials share, nats per token; None: not known, so evaluation noise only",
    )
    seed_runs: int = Field(0, description="runs of comparison and confirmation that it rests on")
    overturned: bool = Field(
        False, description="the recommended one was not the search's best: confirming changed it"
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """A finished trial of the search; all of them on the same sequences in the same order."""

    trial: int
    label: str
    nats_per_sequence_N: Array


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


@dataclass(frozen=True, eq=False)
class _Posterior:
    """Of the candidates' true scores, nats per sequence, as draws of their deviations."""

    mean_A: Array
    se_A: Array
    drawn_ZA: Array

    @classmethod
    def of(cls, z_AN: Array, noise: SeedNoise | None, draws: int, seed: int) -> _Posterior:
        rng, (A, n) = np.random.default_rng(seed), z_AN.shape
        x_A, sigma_AA = z_AN.mean(1), np.atleast_2d(np.cov(z_AN)) / n
        # Contrasts that the sequences' noise leaves uncorrelated; training noise is alike in all.
        contrast_AB = _helmert(A)
        noise_B, turn_BB = np.linalg.eigh(contrast_AB.T @ sigma_AA @ contrast_AB)
        axes_AB = contrast_AB @ turn_BB
        x_B = x_A @ axes_AB
        means, variances, drawn = [], [], []
        for variance in _seed_variances(noise):
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
        return cls(np.mean(means, 0), np.sqrt(spread_A), np.concatenate(drawn))

    def probability(self) -> Array:
        """That each is the best, [A]."""
        best_Z = self.drawn_ZA.argmax(1)
        return np.bincount(best_Z, minlength=self.drawn_ZA.shape[1]) / len(best_Z)

    def regret(self) -> Array:
        """Expected loss by choosing each, [A]."""
        lost_A: Array = (self.drawn_ZA.max(1, keepdims=True) - self.drawn_ZA).mean(0)
        return lost_A


def _seed_variances(noise: SeedNoise | None) -> Array:
    """Quantiles of variance * df / chi² with df degrees of freedom."""
    from scipy.special import chdtri

    if noise is None:
        return np.zeros(SEED_VARIANCES)
    above = 1 - (np.arange(SEED_VARIANCES) + 0.5) / SEED_VARIANCES
    found: Array = noise.variance * noise.degrees / chdtri(noise.degrees, above)
    return found


def _helmert(A: int) -> Array:
    """Orthonormal contrasts of A values, [A, A - 1]."""
    from scipy.linalg import helmert

    found: Array = helmert(A).T
    return found


def search_selection(
    scored: Sequence[Scored],
    tokens_per_sequence: float,
    noise: SeedNoise | None = None,
    confirmed: Sequence[ArmScores] = (),
    worst: Mapping[int, float] | None = None,
    draws: int = 6400,
    seed: int = 0,
) -> SearchSelection:
    """The choice among the finished trials of a search.

    `confirmed` are the scores of fresh trainings on a fresh plan, each named `trial N`; where there
    are at least two with a seed in common, the best of those is recommended, and else the best of
    the search. `worst` has the score that decides instead, by number of the trial: that of its
    worst domain.

    Raises:
        ValueError: nothing is scored.
    """
    if not scored:
        raise ValueError("no trial is scored, so there is nothing to choose")
    z_AN = np.stack([trial.nats_per_sequence_N for trial in scored])
    posterior = _Posterior.of(z_AN, noise, draws, seed)
    again = _confirmations(confirmed, z_AN.mean(1), scored, tokens_per_sequence)
    rows = zip(
        scored,
        z_AN.mean(1),
        posterior.mean_A,
        posterior.se_A,
        posterior.probability(),
        posterior.regret(),
        strict=True,
    )
    candidates = [
        Candidate(
            trial=trial.trial,
            label=trial.label,
            nats_per_token=float(x) / tokens_per_sequence,
            shrunken=float(mean) / tokens_per_sequence,
            half_width=1.96 * float(se) / tokens_per_sequence,
            probability=float(probability),
            expected_regret=float(regret) / tokens_per_sequence,
            confirmation=again.get(trial.trial),
        )
        for trial, x, mean, se, probability, regret in rows
    ]
    candidates.sort(key=lambda c: (-c.nats_per_token, c.trial))
    recommended = _recommended(candidates, worst)
    chosen_by: Literal["search", "confirmation"] = "confirmation" if again else "search"
    return SearchSelection(
        candidates=tuple(candidates),
        recommended=recommended.trial,
        chosen_by=chosen_by if worst is None else "worst_domain",
        seed_sd=noise.variance**0.5 / tokens_per_sequence if noise else None,
        seed_runs=noise.runs if noise else 0,
        overturned=recommended is not candidates[0],
    )


def _recommended(candidates: Sequence[Candidate], worst: Mapping[int, float] | None) -> Candidate:
    """Of the confirmed ones if there are any; the earlier in the ranking of equals."""

    def score(c: Candidate) -> float:
        if worst is not None:
            return worst.get(c.trial, -math.inf)
        return c.confirmation.nats_per_token if c.confirmation else c.nats_per_token

    return max([c for c in candidates if c.confirmation] or candidates, key=score)


def _confirmations(
    confirmed: Sequence[ArmScores],
    x_A: Array,
    scored: Sequence[Scored],
    tokens_per_sequence: float,
) -> dict[int, Confirmation]:
    """By number of the trial; empty unless at least two can be held against each other."""
    known = {
        f"trial {trial.trial}": (trial.trial, float(x))
        for trial, x in zip(scored, x_A, strict=True)
    }
    arms = [arm for arm in confirmed if arm.name in known]
    common = set.intersection(*(set(arm.seeds) for arm in arms)) if arms else set()
    if len(arms) < 2 or not common:
        return {}
    found = {}
    for arm, selection in zip(arms, selection_probabilities(arms), strict=True):
        number, searched = known[arm.name]
        mean = estimate(arm.nats_per_sequence_SN)
        found[number] = Confirmation(
            nats_per_token=mean.mean / arm.tokens_per_sequence,
            half_width=mean.half_width(0.05) / arm.tokens_per_sequence,
            seeds=len(arm.seeds),
            optimism=searched / tokens_per_sequence - mean.mean / arm.tokens_per_sequence,
            probability=selection.probability,
            expected_regret=selection.expected_regret / arm.tokens_per_sequence,
        )
    return found
