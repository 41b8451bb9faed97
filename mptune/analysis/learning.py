"""Where runs are expected to end, and on which scale runs are compared.

Policies far below the best differ by much and cross often; those near it differ by little. With
`gap` the distance of a run to the best of its group at the same rung, and g one distance for the
whole search,

    z = -log(1 + gap / g)

is a scale on which both are alike: on the bed's trainings (`benchmarks/bed`) the standard deviation
of what a run gains in z from one rung to the next is the same in every fifth of the gaps. Near the
best, g dz is the difference of the scores. So a run that stopped at a rung is expected to end at

    z_end = z_rung + sum of mean gains + error,    error ~ N(0, sum of the gains' variances)

with mean and variance of each gain from the runs that went on, and a prior for the variance, by
which the error's standard deviation is in proportion to log progress. A stopped run is evidence of
its policy, with the error's variance (freeze-thaw: Swersky, Snoek and Adams 2014, arXiv 1406.3896).

Shape suffixes: N runs, G rate bands.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mptune.analysis.crossed import Array
from mptune.analysis.exposure import BANDS, Evidence, Points

NEAR_QUANTILE = 0.2
"""g is this quantile of the gaps at the rung that most runs have reached."""

PRIOR_SD = 0.3
"""Of z between two rungs, per unit of log progress, before runs have shown it."""

PRIOR_RUNS = 4
"""Number of runs that the prior of a gain's variance counts as."""

END = 1.0


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """The scores of one training run, higher is better.

    Attributes:
        rungs: score by progress, above 0 and below 1.
        end: final score; None if the run has not finished.
        curve_G: final score of each rate band, None if it is not known.
        seed: number of the training seed.
        group: runs of one group are compared with each other, such as those of one model size.
    """

    rungs: Mapping[float, float]
    end: float | None
    curve_G: Array | None = None
    seed: int = 0
    group: Hashable = None

    @property
    def scores(self) -> dict[float, float]:
        """Score by progress, the end included."""
        return dict(self.rungs) if self.end is None else {**self.rungs, END: self.end}


@dataclass(frozen=True)
class Gain:
    """What runs gain in z between two rungs: mean, variance of one run's, and of the mean."""

    mean: float
    variance: float
    variance_of_mean: float


@dataclass(frozen=True)
class CommonScale:
    """The scale z of a search.

    Attributes:
        near: g, in the unit of the score.
        best: highest score by group and progress.
        levels: where the highest final score of each group is expected.
        gains: by the rung that they begin at, in order.
    """

    near: float
    best: Mapping[tuple[Hashable, float], float]
    levels: Mapping[Hashable, float]
    gains: Mapping[float, Gain]

    @classmethod
    def of(cls, runs: Sequence[ScoredRun], margin: float) -> CommonScale:
        """The scale of these runs.

        Args:
            margin: difference of scores that does not matter; g is half of it or more.
        """
        rungs = sorted({p for run in runs for p in run.scores} | {END})
        best: dict[tuple[Hashable, float], float] = {}
        for run in runs:
            for p, score in run.scores.items():
                best[run.group, p] = max(score, best.get((run.group, p), -np.inf))
        most = max(rungs, key=lambda p: (sum(p in run.scores for run in runs), p))
        gaps = [best[run.group, most] - run.scores[most] for run in runs if most in run.scores]
        near = max(float(np.quantile(gaps, NEAR_QUANTILE)) if gaps else 0.0, margin / 2, 1e-9)
        levels = _levels(best, rungs)
        scale = cls(near, best, levels, {})
        gains: dict[float, Gain] = {}
        for one, other in pairwise(rungs):
            both = [run for run in runs if {one, other} <= run.scores.keys()]
            found = np.array([scale.z(run, other) - scale.z(run, one) for run in both])
            prior = PRIOR_SD**2 * (np.log(one) ** 2 - np.log(other) ** 2)
            mean = float(found.mean()) if both else 0.0
            squares = PRIOR_RUNS * prior + float(((found - mean) ** 2).sum())
            variance = squares / (PRIOR_RUNS + max(len(both) - 1, 0))
            gains[one] = Gain(mean, variance, variance / len(both) if both else 0.0)
        return cls(near, best, levels, gains)

    def z(self, run: ScoredRun, progress: float) -> float:
        """A run's z at a rung that it has reached."""
        gap = self.best[run.group, progress] - run.scores[progress]
        return -float(np.log1p(gap / self.near))

    def end(self, run: ScoredRun) -> tuple[float, float]:
        """Where a run with a score ends, as best score + g z, and the variance of this."""
        last = max(run.scores)
        later = [gain for rung, gain in self.gains.items() if rung >= last]
        z = self.z(run, last) + sum(gain.mean for gain in later)
        variance = sum(gain.variance + gain.variance_of_mean for gain in later)
        return self.levels[run.group] + self.near * z, self.near**2 * variance

    def curve(self, run: ScoredRun) -> Array:
        """A finished run's curve on the scale: its mean is `end`, its differences shrink alike."""
        if run.end is None or run.curve_G is None:
            return np.full(BANDS, np.nan)
        shrunk = (run.curve_G - run.end) * np.exp(self.z(run, END))
        return self.end(run)[0] + shrunk

    def scores(self, ends_N: Array, group: Hashable) -> Array:
        """Final scores of what is given on the scale, the inverse of `end`."""
        best = self.levels[group]
        return best - self.near * np.expm1((best - ends_N) / self.near)


def _levels(
    best: Mapping[tuple[Hashable, float], float], rungs: Sequence[float]
) -> dict[Hashable, float]:
    """The highest final score of each group.

    A group without one is expected to improve from its last rung as much as other groups did on
    average, so that sizes that were stopped at different rungs are comparable.
    """
    levels: dict[Hashable, float] = {}
    for group in {g for g, _ in best}:
        last = max(p for g, p in best if g == group)
        levels[group] = best[group, last]
        for one, other in pairwise(rungs):
            both = [
                best[g, other] - best[g, one] for g, p in best if p == one and (g, other) in best
            ]
            if one >= last and both:
                levels[group] += sum(both) / len(both)
    return levels


def evidence_of_runs(
    points: Points, runs: Sequence[ScoredRun], margin: float
) -> tuple[Evidence, CommonScale]:
    """What runs say of their policies, on the search's scale, and this scale.

    Args:
        points: of the runs.
        runs: each has a score.
        margin: difference of scores that does not matter.
    """
    scale = CommonScale.of(runs, margin)
    ends = np.array([scale.end(run) for run in runs]).reshape(-1, 2)
    evidence = Evidence(
        points=points,
        score_N=ends[:, 0],
        curve_NG=np.array([scale.curve(run) for run in runs]).reshape(-1, BANDS),
        extra_N=ends[:, 1],
        seed_N=np.array([run.seed for run in runs], np.int64),
    )
    return evidence, scale
