"""How sure a search can be of its winner: P(best), expected regret, and what to expect of it.

Each point of the search space that has finished is a candidate, named by its best trial. Its runs
are the search's own (several, where the sampler asked for other seeds), those of a confirmation
(fresh seeds, fresh plan) and those of comparison arms of the same policy, size and training.
`mptune.analysis.posterior` gives the joint posterior of the candidates' true scores; the best in a
draw is the one with the highest score.

Choosing the highest of many noisy scores picks the luckiest noise as well (the winner's curse). The
posterior means take out as much of it as there is on average, whatever the number of candidates.

Without any point that was trained twice the noise of training seeds is unknown, and with it every
probability: then none is given.

What more runs are worth is the knowledge gradient of a joint normal belief:

    theta ~ N(m, S)                            true scores of A candidates
    gain_a(n) = E max_b (m_b + s_b Z) - max_b m_b        s_b = S_ab / sqrt(S_aa + noise_a / n)

by how much n runs of candidate a improve the score of the one that is then chosen (Frazier, Powell
and Dayanik 2008, doi 10.1137/070693424). One run alone may change no choice, although several do,
so gains are to be compared per run at several n (Frazier and Powell 2010, doi
10.1287/deca.1100.0188).

Shape suffixes: A candidates, K candidates with runs on a plan, N sequences, S runs, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mptune.analysis.comparison import Arms, Scores
from mptune.analysis.crossed import Array
from mptune.analysis.intervals import Rule, lml_half_width, score_by_rule, scores_by_name
from mptune.analysis.moderation import SEED_SHARE, out_of_play
from mptune.analysis.posterior import MeasuredPoints, draw_scores
from mptune.analysis.ranking import grouped, point_of, ranking
from mptune.errors import NoResultError
from mptune.trial import Message, Prepared, Trial, TrialResult

RUNS = (1, 2, 4, 8, 16)
"""Numbers of runs whose gain is computed."""

SAME_COST = 1.05
"""Candidates whose training FLOPs differ by less than this factor cost the same."""

NODES = 64
"""Of the integral over Z, in the middles of equal shares of probability."""


class Confirmation(Message):
    """The runs of a candidate with fresh seeds, scored on a fresh plan.

    Attributes:
        nats_per_token: mean over the fresh seeds.
        half_width: of its 95 % interval, both noises, nats per token.
        optimism: score in the search minus this: the winner's curse and the change of plan.
    """

    nats_per_token: float
    half_width: float
    seeds: int
    optimism: float


class Candidate(Message):
    """One finished trial of the search, as something to choose.

    What needs the noise of training seeds is None where that is not known.

    Attributes:
        trial: its number.
        nats_per_token: its score in the search.
        half_width_total: of the 95 % interval of that over new training seeds, sequences and masks,
            nats per token.
        runs: training runs of this point, in all stages.
        expected: what to expect of it, nats per token: the posterior mean given all of its runs and
            all other candidates, which undoes the winner's curse.
        half_width: of the 95 % interval of that, nats per token.
        probability: that it is truly the best of all candidates.
        expected_regret: nats per token lost on average by choosing it instead of the truly best.
        on_front: probability that no candidate that costs no more training FLOPs is truly better;
            None where all cost the same.
    """

    trial: int
    nats_per_token: float
    half_width_total: float | None = None
    runs: int
    expected: float | None = None
    half_width: float | None = None
    probability: float | None = None
    expected_regret: float | None = None
    on_front: float | None = None
    confirmation: Confirmation | None = None


class WeightedScore(Message):
    """What the score of a domain counts in a choice by weights (`search.choose_by`).

    Attributes:
        name: a domain, or heldout.
        nats_per_token: of the recommended trial.
    """

    name: str
    weight: float
    nats_per_token: float


class SeedGain(Message):
    """What more seeds of a candidate would gain on average (`expected_gains`)."""

    trial: int
    seeds: int
    nats_per_token: float


class SearchSelection(Message):
    """The choice that a search makes, and how sure it is.

    Attributes:
        candidates: by score in the search, best first.
        recommended: number of the trial with the least expected regret; with the highest score
            where no noise of seeds is known.
        seed_sd: standard deviation of a candidate's score over training seeds, of the steadiest and
            of the noisiest candidate, nats per token; None: not known.
        seed_runs: training runs of all points that were trained more than once; `seed_sd` is
            estimated from them.
        weighted: what it was chosen by, if by weights.
        overturned: the recommended one was not the search's best: more runs changed it.
        delta: what does not matter, nats per token: one nat per sequence, or half a standard
            deviation of the difference between two seeds of the recommended one.
        within: probability that no candidate is better than the recommended one by more than
            `delta`.
        gains: for each number of seeds, the candidate that gains most by them.
    """

    candidates: tuple[Candidate, ...]
    recommended: int
    chosen_by: Literal["search", "confirmation", "worst_domain", "weights"] = "search"
    weighted: tuple[WeightedScore, ...] = ()
    seed_sd: tuple[float, float] | None = None
    seed_runs: int = 0
    overturned: bool = False
    delta: float | None = None
    within: float | None = None
    gains: tuple[SeedGain, ...] = ()

    @property
    def weighted_mean(self) -> float:
        """Of the recommended trial, by the weights that it was chosen by; nats per token."""
        total = math.fsum(part.weight for part in self.weighted)
        return math.fsum(part.weight * part.nats_per_token for part in self.weighted) / total

    def candidate(self, trial: int) -> Candidate | None:
        """The candidate with this trial number; None if the trial was not scored."""
        return next((c for c in self.candidates if c.trial == trial), None)


@dataclass(frozen=True, eq=False)
class Scored:
    """Runs of one point, scored on one plan.

    Attributes:
        seeds: training seed of each run.
        nats_SN: nats per token of every run and sequence: divided by the plan's mean number of
            observed positions per sequence.
        se: standard error of the mean score of a run over new sequences and masks.
    """

    seeds: tuple[int, ...]
    nats_SN: Array
    se: float


@dataclass(frozen=True, eq=False)
class Runs:
    """All runs of one point of the search space.

    Attributes:
        searched: on the search's plan; of a candidate, its run in the search first.
        fresh: on the plan of the confirmation, or None.
        out_of_play: see `mptune.analysis.moderation.out_of_play`.
        flops: of one training run.
    """

    searched: Scored
    fresh: Scored | None = None
    out_of_play: float = 0.0
    flops: float = 0.0

    @property
    def plans(self) -> dict[int, Scored]:
        """Those that there are, by number of the plan: 0 is the search's."""
        return {0: self.searched} if self.fresh is None else {0: self.searched, 1: self.fresh}

    @property
    def count(self) -> int:
        """Number of training runs of the point, on both plans."""
        return sum(len(scored.seeds) for scored in self.plans.values())


def select_trial(
    searched: Sequence[Trial],
    confirmed: Sequence[Trial],
    arms: Arms,
    prepared: Prepared | None,
    scores: Scores,
    rule: Rule = "heldout",
    draws: int = 6400,
) -> SearchSelection | None:
    """The choice among the finished trials of a search; None if none is scored.

    Args:
        searched: the trials of the search.
        confirmed: trials that repeat some of them with fresh seeds.
        arms: the trials of each arm of a comparison. An arm of the same policy, size and training
            as a candidate adds runs to it; the others tell how noisy seeds are.
        prepared: of the search; None before the data are prepared.
        scores: the stored per-sequence scores of a trial.
        rule: `search.choose_by`; another one than heldout decides where trials have its scores.
        draws: see `search_selection`.
    """
    if prepared is None:
        return None
    fresh = grouped(confirmed, lambda trial: trial.repeats)
    left = {point_of(trials[0]): list(trials) for trials in arms.values() if trials}
    points: dict[int, Runs] = {}
    decisive: dict[int, float] = {}
    results: dict[int, list[TrialResult]] = {}
    for key, same in grouped(ranking(searched), point_of).items():
        trial = same[0]
        confirming = [run for one in same for run in fresh.get(one.number, ())]
        found = _scored([*same, *left.get(key, ())], prepared, scores, required=trial)
        if found is not None:
            left.pop(key, None)
            again = _scored(confirming, prepared, scores)
            law = out_of_play(trial.policy, prepared.length)
            points[trial.number] = Runs(found, again, law, trial.require_result().cost.flops)
        if rule != "heldout":
            confirmed_by = [run.result for run in confirming if run.result is not None]
            results[trial.number] = confirmed_by or [trial.require_result()]
            if (value := score_by_rule(results[trial.number], rule)) is not None:
                decisive[trial.number] = value
    others = [
        Runs(found, None, out_of_play(trials[0].policy, prepared.length))
        for trials in left.values()
        if (found := _scored(trials, prepared, scores)) is not None
    ]
    nat = prepared.heldout_sequences / prepared.heldout_tokens
    if not points:
        return None
    selection = search_selection(points, others, decisive or None, draws, nat=nat)
    if isinstance(rule, str) or not decisive:
        return selection
    named = scores_by_name(results[selection.recommended])
    weighted = tuple(
        WeightedScore(name=name, weight=weight, nats_per_token=named[name])
        for name, weight in rule.items()
        if name in named
    )
    return selection.model_copy(update={"chosen_by": "weights", "weighted": weighted})


def _scored(
    trials: Sequence[Trial], prepared: Prepared, scores: Scores, required: Trial | None = None
) -> Scored | None:
    """Runs that were scored on one plan; None without kept scores of any, or of the `required`."""
    rows, seeds, variances = [], [], []
    for trial in trials:
        nats_N = scores(trial).get("nats_per_sequence")
        if nats_N is None and trial is required:
            return None
        if trial.result is not None and nats_N is not None:
            # A confirmation has a plan of its own, whose sequences have another mean length.
            plan = trial.spec.prepared if trial.spec else prepared
            tokens_per_sequence = plan.mean_length
            rows.append(nats_N / tokens_per_sequence)
            # A run of which no seed is known shares it with no other.
            seeds.append(-1 - trial.number if trial.seed is None else trial.seed)
            variances.append(trial.result.lml.error[0] ** 2)
    se = math.sqrt(np.mean(variances)) if rows else 0.0
    return Scored(tuple(seeds), np.stack(rows), se) if rows else None


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
    """What to expect of a finished trial and the half-width of its 95 % interval, nats per token.

    Both are of the posterior; where the noise of seeds is unknown, its score in the search and
    the half-width over sequences and masks only.
    """
    candidate = selection.candidate(trial.number) if selection else None
    if candidate and candidate.expected is not None and candidate.half_width is not None:
        return candidate.expected, candidate.half_width
    return trial.nats_per_token, lml_half_width(trial.require_result().lml)


CHAINS = 64
"""Chains of the posterior's sampler, of 100 draws each by default: a probability is within one
percentage point of its exact value in most cases."""


def search_selection(
    points: Mapping[int, Runs],
    others: Sequence[Runs] = (),
    decisive: Mapping[int, float] | None = None,
    draws: int = 6400,
    seed: int = 0,
    nat: float = 0.0,
) -> SearchSelection:
    """The choice among the finished trials of a search; the order of the arguments has no effect.

    Args:
        points: number of each trial -> its runs; the same sequences for all that share a plan.
        others: repeated runs of other points, which tell how noisy seeds are.
        decisive: number of a trial -> the score that decides instead, e.g. at its worst domain.
        draws: from the posterior.
        seed: of the draws.
        nat: one nat per sequence, in nats per token.

    Raises:
        ValueError: `points` is empty.
    """
    if not points:
        raise ValueError("no trial is scored, so there is nothing to choose")
    scores = {number: float(runs.searched.nats_SN[0].mean()) for number, runs in points.items()}
    order = sorted(points, key=lambda number: (-scores[number], number))
    candidates = [
        Candidate(trial=number, nats_per_token=scores[number], runs=points[number].count)
        for number in order
    ]
    repeated = [runs for runs in (*points.values(), *others) if runs.count > 1]
    on_plans = [s for runs in (*points.values(), *others) for s in runs.plans.values()]
    several = any(len(s.seeds) > 1 for s in on_plans) or _confirmations(points) > 1
    errors = [s.se for runs in points.values() for s in runs.plans.values()]
    theta_ZA = sd_A = None
    if several and np.isfinite(errors).all():
        candidates, theta_ZA, sd_A = _with_probabilities(candidates, points, others, draws, seed)

    def deciding(c: Candidate) -> float:
        if decisive is not None:
            return decisive.get(c.trial, -math.inf)
        return c.nats_per_token if c.expected is None else c.expected

    # Of equals `max` takes the first, which is the better one in the search.
    confirmed = [c for c in candidates if c.confirmation]
    chosen = max((decisive is not None and confirmed) or candidates, key=deciding)
    chosen_by: Literal["search", "confirmation"] = "confirmation" if confirmed else "search"
    doubt: dict[str, Any] = {}
    if theta_ZA is not None and sd_A is not None:
        doubt = _doubt(order, order.index(chosen.trial), theta_ZA, sd_A, nat)
    return SearchSelection(
        candidates=tuple(candidates),
        recommended=chosen.trial,
        chosen_by=chosen_by if decisive is None else "worst_domain",
        seed_runs=sum(runs.count for runs in repeated),
        overturned=chosen is not candidates[0],
        **doubt,
    )


def _doubt(
    order: Sequence[int], chosen: int, theta_ZA: Array, sd_A: Array, nat: float
) -> dict[str, Any]:
    """What the posterior says of a choice and of more seeds: fields of `SearchSelection`."""
    delta = max(nat, SEED_SHARE * float(sd_A[chosen]))
    loss_Z = theta_ZA.max(1) - theta_ZA[:, chosen]
    gains_NA = expected_gains(theta_ZA.mean(0), np.atleast_2d(np.cov(theta_ZA.T)), sd_A**2)
    # Tails that are heavier than normal ones: no number of seeds gains more than this.
    gains_NA = np.minimum(gains_NA, loss_Z.mean())
    gains = tuple(
        SeedGain(trial=order[best], seeds=seeds, nats_per_token=float(gains_A[best]))
        for seeds, gains_A in zip(RUNS, gains_NA, strict=True)
        for best in [int(gains_A.argmax())]
    )
    return {
        "seed_sd": (float(sd_A.min()), float(sd_A.max())),
        "delta": delta,
        "within": float(np.mean(loss_Z <= delta)),
        "gains": gains,
    }


def expected_gains(mean_A: Array, covariance_AA: Array, noise_A: Array) -> Array:
    """Expected gain of each number of `RUNS` of each candidate, [len(RUNS), A].

    Args:
        noise_A: variance of one run of each candidate around its true score.
    """
    from scipy.special import ndtri

    Z = ndtri((np.arange(NODES) + 0.5) / NODES)
    gains = []
    for runs in RUNS:
        se_A = np.sqrt(covariance_AA.diagonal() + noise_A / runs)
        step_AA = covariance_AA / np.maximum(se_A, 1e-300)
        best_AZ = (mean_A[:, None, None] + step_AA[:, :, None] * Z).max(0)
        gains.append(best_AZ.mean(1) - mean_A.max())
    return np.maximum(gains, 0.0)


def _confirmations(points: Mapping[int, Runs]) -> int:
    """Number of points that were confirmed; one alone shares its plan with no other."""
    return sum(runs.fresh is not None for runs in points.values())


def _with_probabilities(
    candidates: Sequence[Candidate],
    points: Mapping[int, Runs],
    others: Sequence[Runs],
    draws: int,
    seed: int,
) -> tuple[list[Candidate], Array, Array]:
    """The candidates with what the posterior says of each, draws of their true scores, [Z, A], and
    the standard deviation of a run of each over seeds, [A]."""
    others = sorted(others, key=lambda runs: (runs.count, float(runs.searched.nats_SN.mean())))
    of_candidates = [points[c.trial] for c in candidates]
    seen, shared = _observations([*of_candidates, *others], len(candidates))
    theta_ZA, variance_ZA = draw_scores(seen, CHAINS, draws // CHAINS, seed)
    theta_ZA, variance_ZA = theta_ZA[:, : len(candidates)], variance_ZA[:, : len(candidates)]
    flops_A = np.array([runs.flops for runs in of_candidates])
    is_rival_AA = flops_A <= SAME_COST * flops_A[:, None]
    on_front_A = [
        float((theta_ZA[:, is_rival_A].max(1) <= theta_ZA[:, a]).mean())
        for a, is_rival_A in enumerate(is_rival_AA)
    ]
    best_Z, regret_A = theta_ZA.argmax(1), (theta_ZA.max(1, keepdims=True) - theta_ZA).mean(0)
    sd_A = 1 / np.sqrt((1 / variance_ZA).mean(0))
    rng = np.random.default_rng(seed + 1)
    level_Z = math.sqrt(shared) * rng.standard_normal(len(theta_ZA))
    noise_Z = rng.standard_normal(len(theta_ZA))

    def half(variance_Z: Array, se: float) -> float:
        return float(np.quantile(np.abs(noise_Z) * np.sqrt(variance_Z + se**2), 0.95))

    found = []
    for a, (candidate, runs) in enumerate(zip(candidates, of_candidates, strict=True)):
        expected, variance_Z = float(theta_ZA[:, a].mean()), variance_ZA[:, a]
        error_Z = np.abs(theta_ZA[:, a] + level_Z - expected)
        confirmation = None
        if _confirmations(points) > 1 and runs.fresh is not None:
            mean, S = float(runs.fresh.nats_SN.mean()), len(runs.fresh.nats_SN)
            confirmation = Confirmation(
                nats_per_token=mean,
                half_width=half(variance_Z / S, runs.fresh.se),
                seeds=S,
                optimism=candidate.nats_per_token - mean,
            )
        update = {
            "half_width_total": half(variance_Z, runs.searched.se),
            "expected": expected,
            "half_width": float(np.quantile(error_Z, 0.95)),
            "probability": float(np.mean(best_Z == a)),
            "expected_regret": float(regret_A[a]),
            "on_front": None if is_rival_AA.all() else on_front_A[a],
            "confirmation": confirmation,
        }
        found.append(candidate.model_copy(update=update))
    return found, theta_ZA, sd_A


def _observations(points: Sequence[Runs], candidates: int) -> tuple[MeasuredPoints, float]:
    """What was measured, and the variance of the level that all scores on the search's plan share.

    `candidates` is the number of points, from the first on, that can be chosen.
    """
    columns = sorted(
        {(plan, seed) for runs in points for plan, s in runs.plans.items() for seed in s.seeds}
    )
    run_AC = np.full((len(points), len(columns)), np.nan)
    for a, runs in enumerate(points):
        for plan, s in runs.plans.items():
            at = [columns.index((plan, seed)) for seed in s.seeds]
            run_AC[a, at] = s.nats_SN.mean(1)
    evaluation_AP, shared_P = np.zeros((len(points), 2)), np.zeros(2)
    for plan in (0, 1):
        on_plan = {a: runs.plans[plan] for a, runs in enumerate(points) if plan in runs.plans}
        chosen = {a: s for a, s in on_plan.items() if a < candidates}
        if chosen:
            evaluation_AP[list(chosen), plan], shared_P[plan] = _evaluation(list(chosen.values()))
    found = MeasuredPoints(
        run_AC=run_AC,
        plan_C=np.array([plan for plan, _ in columns]),
        evaluation_AP=evaluation_AP,
        is_candidate_A=np.arange(len(points)) < candidates,
        out_of_play_A=np.array([runs.out_of_play for runs in points]),
        shift=float(shared_P.sum()),
    )
    return found, float(shared_P[0])


def _evaluation(scored: Sequence[Scored]) -> tuple[Array, float]:
    """Evaluation variance of the mean score of K points on one plan, and that of what they share.

    Each point has its own part, by moments from the variances of the differences (Shukla 1972,
    doi 10.1038/hdy.1972.87). All are scaled to the standard errors of the scores, which know how
    the sequences belong together.
    """
    z_KN = np.stack([s.nats_SN.mean(0) for s in scored])
    K, n = z_KN.shape
    covariance_KK = np.atleast_2d(np.cov(z_KN)) / n
    variance_K = covariance_KK.diagonal()
    if variance_K.sum() > 0:
        covariance_KK = covariance_KK * sum(s.se**2 for s in scored) / variance_K.sum()
        variance_K = covariance_KK.diagonal()
    if K == 1:
        return np.zeros(1), float(variance_K[0])
    differences_K = variance_K + (variance_K.sum() - 2 * covariance_KK.sum(1)) / K
    own_K = differences_K * K / (K - 1)
    own_K = ((K - 1) * own_K - own_K.sum() / 2) / (K - 2) if K > 2 else own_K / 2
    own_K = np.maximum(own_K, 0.0)
    return own_K, max(0.0, float((variance_K - own_K).mean()))
