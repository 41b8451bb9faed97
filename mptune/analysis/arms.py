"""Paired comparison of arms over paired seeds, with the noise of training and of evaluation.

The difference of two arms on the same plan is d[seed, sequence]; its interval and its p-value carry
both noises (`mptune.analysis.crossed`). Verdicts come from p-values, corrected by Holm over
challengers and, where seeds are added until decided, for every look taken
(`mptune.analysis.sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mptune.analysis.crossed import Array, Estimate, SampleSize, estimate, forecast, joint_noise
from mptune.analysis.sequential import nominal_levels, sequential_p

Verdict: TypeAlias = Literal["better", "worse", "undecided", "equivalent"]


@dataclass(frozen=True, eq=False)
class ArmScores:
    """One arm: its score of every held-out sequence, for every training seed.

    Attributes:
        name: of the arm.
        nats_per_sequence_SN: log-marginal-likelihood estimates, seeds x sequences (higher is
            better); all arms of a comparison have the same sequences in the same order.
        seeds: the training seed of each row.
        tokens_per_sequence: mean number of observed positions per sequence.
        bytes_per_token: text bytes per observed position, or None where there is no text.
    """

    name: str
    nats_per_sequence_SN: Array
    seeds: tuple[int, ...]
    tokens_per_sequence: float
    bytes_per_token: float | None = None

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

    def at(self, seeds: Sequence[int]) -> Array:
        """Rows of these seeds, in this order."""
        return self.nats_per_sequence_SN[[self.seeds.index(seed) for seed in seeds]]


@dataclass(frozen=True)
class Difference:
    """An arm compared with the baseline; positive nats mean that the arm is better.

    Attributes:
        nats_per_sequence: mean difference arm - baseline.
        half_width: of the interval at `level`, for this pair alone.
        seeds: paired seeds; with 1 the interval carries evaluation noise only.
        se_seed: standard error from training seeds, or None with one seed.
        se_sequences: standard error from the choice of held-out sequences.
        p_value: two-sided, of no difference, adjusted by Holm over all challengers.
        verdict: at `level`, from the adjusted p-value.
        nats_per_token: the difference per observed position.
        bits_per_byte: difference in code length (negative: the arm is better), or None.
        challengers: arms that were compared with this baseline, for Holm's correction.
        margin: differences below it do not matter (nats per sequence), or None.
        look: how many times it was tested, where seeds are added until decided; the interval
            and the p-value are then corrected for all looks.
        looks: how many looks there may be.
        more_seeds: paired seeds that would probably decide it (in four of five cases, were the
            difference what it seems); None if it is decided, or if no number would.
        sequences_needed: held-out sequences in all that would, with the seeds that there are.
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
    more_seeds: int | None = None
    sequences_needed: int | None = None


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


def _holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in given order."""
    adjusted, running = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    for rank, k in enumerate(order):
        running = max(running, min(1.0, p_values[k] * (len(order) - rank)))
        adjusted[k] = running
    return adjusted


def _paired_seeds(arms: Sequence[ArmScores]) -> list[int]:
    """Seeds that every one of these arms has; a seed that failed in one is left out of all."""
    common = sorted(set.intersection(*(set(arm.seeds) for arm in arms)))
    if not common:
        each = ", ".join(f"{arm.name!r} {arm.seeds}" for arm in arms)
        raise ValueError(f"the arms have no training seed in common: {each}")
    if len({arm.nats_per_sequence_SN.shape[1] for arm in arms}) > 1:
        raise ValueError("the arms were not scored on the same sequences")
    return common


def compare(
    arms: Sequence[ArmScores],
    baseline: str,
    level: float = 0.95,
    margin: float | None = None,
    looks: Sequence[int] = (),
    forecasts: bool = True,
) -> list[Difference]:
    """Compare every other arm with the baseline, in the order of `arms`.

    Only seeds that both arms of a pair have are used. Intervals are at `level` for each pair alone;
    p-values and verdicts are corrected by Holm over the challengers, so that all verdicts together
    are wrong at most 1 - level of the time. `margin` (nats per sequence) adds the verdict
    "equivalent", for differences that are shown to lie within it. `looks` are the seeds at which
    the comparison may stop if seeds are added until decided: everything is corrected for them.
    `forecasts` adds how many seeds or sequences would probably decide an undecided pair.

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
    pairs = []
    for arm in arms:
        if arm is not base:
            seeds = _paired_seeds([arm, base])
            d_SN = arm.at(seeds) - base.at(seeds)
            counts = [look for look in looks if look <= len(seeds)] or [len(seeds)]
            if len(counts) == len(looks):
                counts[-1] = len(seeds)
            reached = [d_SN[:count] for count in counts]
            pairs.append((arm, reached, tuple(looks) or (len(seeds),)))
    p_values = _holm([
        sequential_p([estimate(d_SN).p_value() for d_SN in reached], planned)
        for _, reached, planned in pairs
    ])  # fmt: skip
    same = _holm([
        sequential_p([_equivalence_p(estimate(d_SN), margin) for d_SN in reached], planned)
        for _, reached, planned in pairs
    ])  # fmt: skip
    differences = []
    for (arm, reached, planned), p_value, equivalence_p in zip(pairs, p_values, same, strict=True):
        found, (S, n) = estimate(reached[-1]), reached[-1].shape
        alpha = nominal_levels(planned, 1 - level)[len(reached) - 1]
        half_width = found.half_width(alpha)
        per_token = found.mean / arm.tokens_per_sequence
        bytes_per_token = arm.bytes_per_token
        verdict: Verdict = "better" if found.mean > 0 else "worse"
        if p_value > 1 - level:
            verdict = "undecided"
        if equivalence_p <= 1 - level:
            verdict = "equivalent"
        needed = SampleSize(None, None)
        if forecasts and verdict == "undecided":
            needed = forecast(reached[-1], alpha / len(pairs), margin)
        differences.append(
            Difference(
                arm=arm.name,
                baseline=baseline,
                nats_per_sequence=found.mean,
                half_width=half_width,
                low=found.mean - half_width,
                high=found.mean + half_width,
                level=level,
                seeds=S,
                sequences=n,
                se_seed=math.sqrt(found.parts[0][0]) if S > 1 else None,
                se_sequences=math.sqrt(found.parts[-1][0]),
                p_value=p_value,
                verdict=verdict,
                nats_per_token=per_token,
                bits_per_byte=-per_token / math.log(2) / bytes_per_token
                if bytes_per_token
                else None,
                challengers=len(pairs),
                margin=margin,
                look=len(reached),
                looks=len(planned),
                more_seeds=needed.seeds,
                sequences_needed=needed.sequences,
            )
        )
    return differences


def _equivalence_p(found: Estimate, margin: float | None) -> float:
    """Two one-sided tests against -margin and +margin (Schuirmann 1987), doubled; 1 without margin.

    Doubled, so that it is as strict as a two-sided interval that lies inside the margin.
    """
    if not margin or abs(found.mean) >= margin:
        return 1.0
    return max(found.p_value(-margin), found.p_value(margin))


def selection_probabilities(
    arms: Sequence[ArmScores], draws: int = 20_000, seed: int = 0
) -> list[Selection]:
    """Probability that each arm is the best, and the regret of choosing it, under both noises.

    Parametric simulation: true means are drawn around the observed ones with the crossed model's
    covariance between arms (shared sequences and seeds make arms move together). The seed part is
    multivariate t with S - 1 degrees of freedom, the sequence part is normal. With one seed, the
    probabilities know evaluation noise only.
    """
    rng = np.random.default_rng(seed)
    seeds = _paired_seeds(arms)
    z_ASN = np.stack([arm.at(seeds) for arm in arms])
    truth_RA = z_ASN.mean((1, 2)) + joint_noise(z_ASN, draws, rng)
    best_R1 = truth_RA.max(1, keepdims=True)
    probability_A = np.bincount(truth_RA.argmax(1), minlength=len(arms)) / draws
    regret_A = (best_R1 - truth_RA).mean(0)
    return [
        Selection(arm.name, float(probability), float(regret))
        for arm, probability, regret in zip(arms, probability_A, regret_A, strict=True)
    ]
