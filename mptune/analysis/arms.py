"""Comparison of arms over paired seeds, with the noise of training and of evaluation.

Notation, for K challengers and a baseline (arm 0), scored on the same sequences:

    d_k          mean difference challenger - baseline over the seeds that both have
    sigma²_a     variance over training seeds of arm a, besides what a seed does to all arms alike
    v_k          (sigma²_k + sigma²_0) / S_k + variance from the choice of sequences

With a few seeds an arm says little about its own sigma²_a, so all arms are estimated together
(`mptune.analysis.moderation`). The intervals d_k ± c_k are simultaneous: all of them hold at once
with probability `level`. They come from the joint distribution of the K errors (Dunnett, JASA 50,
1955), whose correlation through the baseline and whose unequal variances and degrees of freedom
have no closed form: it is simulated with a fixed seed. An interval that excludes 0 decides its
pair, and those that are left are tested again among themselves, until none is decided (step-down,
a closed test: Marcus, Peritz and Gabriel 1976, doi 10.1093/biomet/63.3.655). A pair that is decided
in a later step has the part of its interval on one side of 0. Where more seeds are added until
decided, the level of each look is corrected (`mptune.analysis.sequential`).

Shape suffixes: A arms, K challengers, S seeds, N sequences, X distances, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import ndtr

from mptune.analysis.crossed import (
    Array,
    SampleSize,
    critical,
    root,
    sample_size,
    tail,
)
from mptune.analysis.moderation import moderate
from mptune.analysis.sequential import nominal_levels, overall_level

Verdict: TypeAlias = Literal["better", "worse", "undecided", "equivalent"]

TINY = 1e-200
"""Variance of arms that do not differ at all."""

UNLIKE_BASELINE, UNLIKE_CHALLENGER = 0.2, 0.02
"""Levels of the tests of whether the variance of the baseline, or of a challenger, is larger than
the others explain (see `moderate`). The baseline's error is in every difference, so to take its
variance for theirs by mistake is costly, and its test is the more sensitive one; what other levels
cost is in `benchmarks/RESULTS.md`."""

DRAWS, MIXTURE = 16_384, 256
"""Draws of the joint errors, and of variances: the level of a family at 95 % is exact to a standard
error of 0.17 %."""


@dataclass(frozen=True, eq=False)
class ArmScores:
    """One arm: its score of every held-out sequence, for every training seed.

    Attributes:
        name: of the arm.
        nats_per_sequence_SN: log-marginal-likelihood estimates, seeds x sequences (higher is
            better); all arms of a comparison have the same sequences in the same order. They count
            as independent: of sequences in groups, pass `mptune.lml.groups.group_scores`. Of fewer
            than `MIN_GROUPS` groups, sequences are passed: intervals are for these groups only.
        seeds: the training seed of each row.
        tokens_per_sequence: mean number of observed positions per sequence.
        bytes_per_token: text bytes per observed position, or None where there is no text.
        out_of_play: share of mask counts that its policy leaves out late in training
            (`mptune.analysis.moderation.out_of_play`).
    """

    name: str
    nats_per_sequence_SN: Array
    seeds: tuple[int, ...]
    tokens_per_sequence: float
    bytes_per_token: float | None = None
    out_of_play: float = 0.0

    def __post_init__(self) -> None:
        scores = np.asarray(self.nats_per_sequence_SN, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[0] != len(self.seeds) or scores.shape[1] < 2:
            raise ValueError(
                f"arm {self.name!r} has scores of shape {scores.shape}; expected "
                f"({len(self.seeds)} seeds, at least 2 sequences)"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"arm {self.name!r} has a seed twice: {self.seeds}")
        if not np.isfinite(scores).all():
            raise ValueError(f"arm {self.name!r} has scores that are not finite; leave the run out")
        object.__setattr__(self, "nats_per_sequence_SN", scores)

    def first(self, runs: int | None) -> ArmScores:
        """Only the first `runs` seeds; None is all."""
        seeds = tuple(sorted(self.seeds)[:runs])
        return replace(self, seeds=seeds, nats_per_sequence_SN=self.at(seeds))

    def at(self, seeds: Sequence[int]) -> Array:
        """Rows of these seeds, in this order."""
        return self.nats_per_sequence_SN[[self.seeds.index(seed) for seed in seeds]]


@dataclass(frozen=True)
class Difference:
    """An arm compared with the baseline; positive nats mean that the arm is better.

    Attributes:
        nats_per_sequence: mean difference arm - baseline.
        half_width: of the interval before the steps: those of all challengers hold at once at
            `level`, and at every look.
        low, high: ends of the interval, `half_width` away; 0 is one of them where the pair is
            decided in a later step.
        seeds: paired seeds; with 1 the interval carries evaluation noise only.
        se_seed: standard error from training seeds, or None with one seed.
        se_sequences: standard error from the choice of held-out sequences.
        p_value: adjusted: the smallest alpha at which the pair is decided.
        verdict: better or worse if 0 is not inside the interval and no single seed carries it.
        nats_per_token: the difference per observed position.
        bits_per_byte: difference in code length (negative: the arm is better), or None.
        challengers: arms that were compared with this baseline, for which it is corrected.
        margin: differences below it do not matter (nats per sequence), or None.
        look: at which look it was decided, or the last one, where seeds are added until decided.
        looks: how many looks there may be.
        carried_by: the seed without which the verdict would not hold; then it is undecided.
        more_seeds: paired seeds that would probably decide it (in four of five cases, were the
            difference what it seems); None if it is decided, or if no number would.
        sequences: held-out groups of sequences (documents, subjects); below `MIN_GROUPS` of them,
            sequences.
        sequences_needed: as many in all would decide it, with the seeds that there are; None
            below `MIN_GROUPS`.
        few_groups: number of groups, if that is too few to claim anything about others; else None.
    """

    arm: str
    baseline: str
    nats_per_sequence: float
    half_width: float
    low: float
    high: float
    level: float
    seeds: int
    sequences: int
    se_seed: float | None
    se_sequences: float
    p_value: float
    verdict: Verdict
    nats_per_token: float
    bits_per_byte: float | None
    challengers: int = 1
    margin: float | None = None
    look: int = 1
    looks: int = 1
    carried_by: int | None = None
    more_seeds: int | None = None
    sequences_needed: int | None = None
    few_groups: int | None = None


@dataclass(frozen=True)
class Selection:
    """How sure the choice of this arm would be.

    Attributes:
        probability: that the arm is the best of all.
        expected_regret: nats per sequence lost on average against the truly best arm.
    """

    arm: str
    probability: float
    expected_regret: float


def share_a_seed(arms: Sequence[ArmScores]) -> bool:
    """Whether some seed is in all of these arms."""
    return bool(arms) and bool(set.intersection(*(set(arm.seeds) for arm in arms)))


def _paired_seeds(arms: Sequence[ArmScores]) -> list[int]:
    """Seeds that every one of these arms has; a seed that failed in one is left out of all."""
    common = sorted(set.intersection(*(set(arm.seeds) for arm in arms)))
    if not common:
        each = ", ".join(f"{arm.name!r} {arm.seeds}" for arm in arms)
        raise ValueError(f"the arms have no training seed in common: {each}")
    if len({arm.nats_per_sequence_SN.shape[1] for arm in arms}) > 1:
        raise ValueError("the arms were not scored on the same sequences")
    return common


@dataclass(frozen=True, eq=False)
class Errors:
    """Joint distribution of the errors of K mean differences from one baseline.

    What is common to all differences is the error of the baseline against the weighted mean of the
    J challengers; what is left of each is a mixture of the challengers' own errors.

    Attributes:
        own_J: variance of the mean of each challenger from its seeds.
        own_ZJ: what it may truly be, by draws.
        mix_KJ: weights of the challengers' errors in the own error of each difference.
        common: variance over seeds of what is common to all differences.
        common_Z: what it may truly be, in the same draws.
        used_KS: weight of each seed in the mean of each difference; rows sum to 1.
        sequences_KK: covariance from the choice of sequences.
        sequences_df: degrees of freedom behind it.
    """

    own_J: Array
    own_ZJ: Array
    mix_KJ: Array
    common: float
    common_Z: Array
    used_KS: Array
    sequences_KK: Array
    sequences_df: int

    @property
    def seed(self) -> Array:
        """Variance of each from training seeds, [K]."""
        return self.mix_KJ**2 @ self.own_J + self.common * (self.used_KS**2).sum(1)

    @property
    def se(self) -> Array:
        """Standard error of each, [K]."""
        return np.sqrt(self.seed + np.diag(self.sequences_KK))

    def draw(self) -> Array:
        """Errors of the K differences, [Z, K]; the same ones at every call."""
        (Z, J), (K, S) = self.own_ZJ.shape, self.used_KS.shape
        rng = np.random.default_rng(1)
        own_ZJ = rng.standard_normal((Z, J)) * np.sqrt(self.own_ZJ)
        common_ZS = rng.standard_normal((Z, S)) * np.sqrt(self.common_Z)[:, None]
        t_Z1 = np.sqrt(self.sequences_df / rng.chisquare(self.sequences_df, (Z, 1)))
        sequences_ZK = t_Z1 * rng.standard_normal((Z, K)) @ root(self.sequences_KK)
        return own_ZJ @ self.mix_KJ.T + common_ZS @ self.used_KS.T + sequences_ZK

    def tails(self, distance_KX: Array) -> Array:
        """P(|error| >= distance) of each difference alone, [K, X], averaged over its variance."""
        variance_ZK = self.own_ZJ[:MIXTURE] @ (self.mix_KJ**2).T
        variance_ZK += self.common_Z[:MIXTURE, None] * (self.used_KS**2).sum(1)
        sd_ZK = np.sqrt(np.maximum(variance_ZK + np.diag(self.sequences_KK), TINY))
        return 2 * ndtr(-distance_KX[..., None] / sd_ZK.T[:, None]).mean(2)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Of K differences: half-widths and p-values.

    Attributes:
        half_K: of the intervals that all hold at once with probability 1 - alpha.
        p_K: smallest alpha at which it differs from 0, by steps.
        alone: 1 - level of each of these intervals for itself. It is the same for all, so that an
            arm whose variance is hardly known widens only its own interval.
    """

    half_K: Array
    p_K: Array
    alone: float


def simultaneous(errors: Errors, mean_K: Array, alpha: float) -> Intervals:
    """The intervals of several differences, by simulation of their joint errors."""
    se_K, log_x_X = np.maximum(errors.se, math.sqrt(TINY)), np.linspace(-1.5, 6.0, 31)
    score_KX = -np.log(errors.tails(se_K[:, None] * np.exp(log_x_X)) + 1e-12)

    def scores(error_ZK: Array) -> Array:
        log_t_ZK = np.log(np.abs(error_ZK) + TINY) - np.log(se_K)
        columns = zip(log_t_ZK.T, score_KX, strict=True)
        return np.stack([np.interp(log_t_Z, log_x_X, score_X) for log_t_Z, score_X in columns])

    observed_K = scores(mean_K[None])[:, 0]
    order_K = np.argsort(observed_K)
    largest_KZ = np.maximum.accumulate(scores(errors.draw())[order_K])  # of those not yet decided
    score = float(np.quantile(largest_KZ[-1], 1 - alpha, method="higher"))
    half_K = se_K * np.exp([np.interp(score, score_X, log_x_X) for score_X in score_KX])
    p_K = np.empty(len(mean_K))
    step_K = (largest_KZ >= observed_K[order_K, None]).mean(1)
    p_K[order_K] = np.maximum.accumulate(step_K[::-1])[::-1]
    return Intervals(half_K, p_K, math.exp(-score))


def of_two_arms(errors: Errors, mean: float, runs: int, alpha: float) -> Intervals:
    """The interval of the only difference, by quadrature: Student's without noise of sequences.

    At 1 - 1 / runs of the level: runs are often skewed to low scores, and Student's t of three such
    runs errs up to 1.5 times as often as it says. With more arms, their variances help.
    """
    seed = float(errors.seed[0]), max(1.0, runs - 1.0)
    parts = seed, (float(errors.sequences_KK[0, 0]), float(errors.sequences_df))
    share = 1 - 1 / runs if runs > 1 else 1.0
    p = min(1.0, tail(abs(mean), parts) / share)
    return Intervals(np.array([critical(alpha * share, parts)]), np.array([p]), alpha * share)


@dataclass(frozen=True, eq=False)
class Pair:
    """A challenger and the baseline at one look: d[paired seed, sequence]."""

    arm: ArmScores
    seeds: Sequence[int]
    d_SN: Array


def joint_errors(arms: Sequence[ArmScores], pairs: Sequence[Pair], draws: int) -> Errors:
    """Of the mean differences of `pairs`; `arms` are all, the baseline first.

    Arms without a pair count, too: they say something about the noise of the others.
    """
    base, *challengers = arms
    noise = SeedNoise.of(challengers, base, draws)
    names = [arm.name for arm in challengers]
    runs_J = np.array([max(1, len({*arm.seeds} & {*base.seeds})) for arm in challengers])
    seeds = sorted({seed for pair in pairs for seed in pair.seeds})
    return Errors(
        own_J=noise.variance_A[1:] / runs_J,
        own_ZJ=noise.variance_ZA[:, 1:] / runs_J,
        mix_KJ=np.eye(len(names))[[names.index(p.arm.name) for p in pairs]] - noise.share_A,
        common=float(noise.variance_A[0]),
        common_Z=noise.variance_ZA[:, 0],
        used_KS=np.array([np.isin(seeds, pair.seeds) / len(pair.seeds) for pair in pairs]),
        sequences_KK=evaluation_noise(pairs),
        sequences_df=pairs[0].d_SN.shape[1] - 1,
    )


def evaluation_noise(pairs: Sequence[Pair]) -> Array:
    """Covariance [K, K] of the mean differences from the sequences.

    The interaction of seeds and sequences is taken out, because it is in the seeds' variance. Pairs
    share that of the baseline, so it is taken out of the covariances, too. An estimate that is no
    covariance is replaced by the nearest one that is.
    """
    seeds, n = sorted({seed for pair in pairs for seed in pair.seeds}), pairs[0].d_SN.shape[1]
    residual_KSN = np.zeros((len(pairs), len(seeds), n))
    for residual_SN, pair in zip(residual_KSN, pairs, strict=True):
        d_SN = pair.d_SN - pair.d_SN.mean(1, keepdims=True)
        residual_SN[np.isin(seeds, pair.seeds)] = d_SN - d_SN.mean(0)
    squares_KK = np.tensordot(residual_KSN, residual_KSN, axes=((1, 2), (1, 2)))
    runs_K = np.array([len(pair.seeds) for pair in pairs])
    common_KK = np.array([[len({*a.seeds} & {*b.seeds}) for a in pairs] for b in pairs])
    # Cross products of residuals over the seeds in common, each pair centred over all of its own.
    free_KK = np.maximum(1, np.outer(runs_K - 1, runs_K - 1) - 1 + common_KK)
    found_KK: Array = np.atleast_2d(np.cov(np.stack([pair.d_SN.mean(0) for pair in pairs]))) / n
    found_KK -= squares_KK / (free_KK * n * (n - 1))
    root_KK = root(found_KK)
    return root_KK @ root_KK


@dataclass(frozen=True, eq=False)
class SeedNoise:
    """Variances over training seeds.

    Attributes:
        variance_A: of one run of each arm, besides what a seed does to all arms alike; with a
            baseline, that of the baseline against the weighted mean of the others comes first.
            Zero without two seeds.
        variance_ZA: what they may truly be, by draws.
        share_A: weight of each arm in that mean; sums to 1.
    """

    variance_A: Array
    variance_ZA: Array
    share_A: Array

    @classmethod
    def of(cls, arms: Sequence[ArmScores], base: ArmScores | None, draws: int) -> SeedNoise:
        """Of `arms`, moderated, and of a baseline, whose variance may be unlike theirs."""
        with_base = [*arms] if base is None else [base, *arms]
        seeds = sorted({seed for arm in with_base for seed in arm.seeds})
        y_AS = np.full((len(with_base), len(seeds)), np.nan)
        for y_S, arm in zip(y_AS, with_base, strict=True):
            y_S[[seeds.index(seed) for seed in arm.seeds]] = arm.nats_per_sequence_SN.mean(1)
        first, A = len(with_base) - len(arms), len(arms)
        y_AS = y_AS[:, np.isfinite(y_AS[first:]).any(0)]
        out_of_play_A = np.array([arm.out_of_play for arm in with_base])
        unlike_A = np.zeros(len(with_base))
        sample_A, df_A = np.zeros(len(with_base)), np.zeros(len(with_base))
        variance_A, weight_A = np.zeros(len(with_base)), np.ones(A)
        for _ in range(2):  # weights that follow from the variances; more rounds change nothing
            sample_A[first:], df_A[first:], seed_S = _residual_variances(y_AS[first:], weight_A)
            if base is not None:
                common_S = (seed_S - y_AS[0])[np.isfinite(y_AS[0])]
                # As large as that of a run, if the baseline is like the others.
                df_A[0] = len(common_S) - 1
                sample_A[0] = common_S.var(ddof=1) * A / (A + 1) if df_A[0] else 0.0
                unlike_A[1:] = UNLIKE_CHALLENGER
                unlike_A[0] = UNLIKE_BASELINE if df_A[1:].any() else 1.0
            if not (df_A * sample_A).any():
                return cls(variance_A, np.zeros((draws, len(variance_A))), weight_A / A)
            found = moderate(sample_A, df_A, out_of_play_A, unlike_A)
            variance_A = found.variance_A
            weight_A = 1 / variance_A[first:]
        variance_ZA = found.draw(draws, np.random.default_rng(0))
        if base is not None:
            variance_A[0] *= (A + 1) / A
            variance_ZA[:, 0] *= (A + 1) / A
        return cls(variance_A, variance_ZA, weight_A / weight_A.sum())


def _residual_variances(y_AS: Array, weight_A: Array) -> tuple[Array, Array, Array]:
    """Sample variances in y = arm + seed + error, their degrees of freedom, and the seeds' effects.

    By weighted least squares; NaN is missing. An arm with a large share of the weight decides the
    seeds' effects and keeps so much less freedom.
    """
    known_AS = np.isfinite(y_AS)
    weight_AS = weight_A[:, None] * known_AS
    share_AS, runs_A1 = weight_AS / weight_AS.sum(0), known_AS.sum(1, keepdims=True)
    y_AS, error_AS = np.where(known_AS, y_AS, 0.0), np.zeros(y_AS.shape)
    seed_S = np.zeros(y_AS.shape[1])
    for _ in range(2 if known_AS.all() else 20):
        error_AS = (y_AS - seed_S) * known_AS
        error_AS -= error_AS.sum(1, keepdims=True) / np.maximum(1, runs_A1) * known_AS
        seed_S = seed_S + (share_AS * error_AS).sum(0)
    df_A = ((1 - share_AS) * known_AS * (1 - 1 / np.maximum(1, runs_A1))).sum(1)
    return (error_AS**2).sum(1) / np.where(df_A > 0, df_A, 1.0), df_A, seed_S


def compare(
    arms: Sequence[ArmScores],
    baseline: str,
    level: float = 0.95,
    margin: float | None = None,
    looks: Sequence[int] = (),
    forecasts: bool = True,
    draws: int = DRAWS,
) -> list[Difference]:
    """Compare every other arm with the baseline, in the order of `arms`.

    Only seeds that both arms of a pair have are used. All intervals hold at once at `level`, and
    verdicts are read from them, so all verdicts together are wrong at most 1 - level of the time.
    `margin` (nats per sequence) adds the verdict "equivalent", for intervals that lie within it.
    `looks` are the seeds at which the comparison may stop if seeds are added until decided: levels
    are corrected for them, and a pair that is decided leaves the family. `forecasts` adds how many
    seeds or sequences would probably decide an undecided pair.

    Raises:
        ValueError: no such baseline, no challenger, no common seed, or different sequences.
    """
    by_name = {arm.name: arm for arm in arms}
    if baseline not in by_name or len(by_name) < max(2, len(arms)):
        raise ValueError(
            f"needs at least two arms of different names, one of them the baseline {baseline!r}; "
            f"got {[arm.name for arm in arms]}"
        )
    base = by_name[baseline]
    # Sorted, so that the order of the arms does not change the draws.
    ordered = [base, *sorted((arm for arm in arms if arm is not base), key=lambda arm: arm.name)]
    paired = {arm.name: _paired_seeds([arm, base]) for arm in ordered[1:]}
    planned = tuple(looks) or (max(map(len, paired.values())),)
    found: dict[str, Difference] = {}
    for look, (runs, alpha) in enumerate(
        zip(planned, nominal_levels(planned, 1 - level), strict=True)
    ):
        # A look sees its own seeds only: what it decides does not change when more are added.
        most = None if look == len(planned) - 1 else runs
        family = [
            Pair(arm, seeds, arm.at(seeds) - base.at(seeds))
            for arm in ordered[1:]
            for seeds in [paired[arm.name][:most]]
            if arm.name not in found or found[arm.name].verdict == "undecided"
            if look == 0 or len(paired[arm.name]) >= runs
        ]
        if family:
            seen = [arm.first(most) for arm in ordered]
            for difference in _test(seen, family, alpha, level, margin, forecasts, draws):
                found[difference.arm] = replace(
                    difference,
                    p_value=overall_level(difference.p_value, look, planned),
                    challengers=len(ordered) - 1,
                    look=look + 1,
                    looks=len(planned),
                )
    return [found[arm.name] for arm in arms if arm is not base]


def _test(
    arms: Sequence[ArmScores],
    family: Sequence[Pair],
    alpha: float,
    level: float,
    margin: float | None,
    forecasts: bool,
    draws: int,
) -> Iterator[Difference]:
    """The differences of a family, whose intervals hold at once with probability 1 - alpha."""
    mean_K = np.array([pair.d_SN.mean() for pair in family])
    if len(arms) == 2:
        errors = joint_errors(arms, family, 1)
        intervals = of_two_arms(errors, float(mean_K[0]), len(family[0].seeds), alpha)
    else:
        errors = joint_errors(arms, family, draws)
        intervals = simultaneous(errors, mean_K, alpha)
    for k, pair in enumerate(family):
        mean, half, (S, n) = float(mean_K[k]), float(intervals.half_K[k]), pair.d_SN.shape
        v_seed, v_sequences = float(errors.seed[k]), float(errors.sequences_KK[k, k])
        verdict: Verdict = "undecided"
        carried_by = None
        low, high = mean - half, mean + half
        if intervals.p_K[k] <= alpha:
            place = carrier(pair.d_SN.mean(1), math.sqrt(v_seed + v_sequences))
            carried_by = None if place is None else pair.seeds[place]
            verdict = "better" if mean > 0 else "worse"
            if carried_by is None:
                low, high = (max(0.0, low), high) if mean > 0 else (low, min(0.0, high))
        if margin is not None and abs(mean) + half < margin:
            verdict = "equivalent"
        elif carried_by is not None:
            verdict = "undecided"
        needed = SampleSize(None, None)
        if forecasts and verdict == "undecided":
            needed = sample_size(mean, S, n, v_seed, v_sequences, half, intervals.alone, margin)
        per_token, bytes_per_token = mean / pair.arm.tokens_per_sequence, pair.arm.bytes_per_token
        yield Difference(
            arm=pair.arm.name,
            baseline=arms[0].name,
            nats_per_sequence=mean,
            half_width=half,
            low=low,
            high=high,
            level=level,
            seeds=S,
            sequences=n,
            se_seed=math.sqrt(v_seed) if S > 1 else None,
            se_sequences=math.sqrt(v_sequences),
            p_value=float(intervals.p_K[k]),
            verdict=verdict,
            nats_per_token=per_token,
            bits_per_byte=-per_token / math.log(2) / bytes_per_token if bytes_per_token else None,
            margin=margin,
            carried_by=carried_by,
            more_seeds=needed.seeds,
            sequences_needed=needed.sequences,
        )


def carrier(d_S: Array, se: float) -> int | None:
    """Place of the seed that carries the mean of `d_S`; None if it holds without any one of them.

    Without a seed, the difference must still be 1.645 standard errors away from 0: its sign is
    given, so this is a one-sided test at 5 %. The whole test again without the seed would leave
    most clear cases at three seeds undecided (`benchmarks/comparison.py`).
    """
    S = len(d_S)
    if S == 1:
        return 0
    without_S = math.copysign(1.0, d_S.mean()) * (d_S.sum() - d_S) / (S - 1)
    weakest = int(without_S.argmin())
    holds = without_S[weakest] > 1.645 * se * math.sqrt(S / (S - 1))
    return None if holds else weakest


def selection_probabilities(arms: Sequence[ArmScores], draws: int = DRAWS) -> list[Selection]:
    """Probability that each arm is the best, and the regret of choosing it, under both noises.

    True means are drawn around the observed ones with the joint errors that `compare` uses. With
    one seed, the probabilities know evaluation noise only. The order of the arms has no effect.
    """
    seeds, given = _paired_seeds(arms), arms
    arms = sorted(arms, key=lambda arm: arm.name)
    pairs = [Pair(arm, seeds, arm.at(seeds) - arms[0].at(seeds)) for arm in arms[1:]]
    errors = joint_errors(arms, pairs, draws)
    if len(arms) > 2:  # all are alike, so no arm is in the place of a baseline
        noise = SeedNoise.of(arms, None, draws)
        own_A, own_ZA = noise.variance_A / len(seeds), noise.variance_ZA / len(seeds)
        mix_KA = np.eye(len(arms))[1:] - np.eye(len(arms))[0]
        errors = replace(
            errors, own_J=own_A, own_ZJ=own_ZA, mix_KJ=mix_KA, common_Z=np.zeros(draws)
        )
    error_ZK = errors.draw()
    truth_ZA = np.zeros((draws, len(arms)))
    truth_ZA[:, 1:] = error_ZK + np.array([pair.d_SN.mean() for pair in pairs])
    best_Z1 = truth_ZA.max(1, keepdims=True)
    probability_A = np.bincount(truth_ZA.argmax(1), minlength=len(arms)) / draws
    regret_A = (best_Z1 - truth_ZA).mean(0)
    found = {
        arm.name: Selection(arm.name, float(probability), float(regret))
        for arm, probability, regret in zip(arms, probability_A, regret_A, strict=True)
    }
    return [found[arm.name] for arm in given]
