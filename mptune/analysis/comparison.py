"""The comparison of named arms: which trials belong to each arm, and what is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import Field

from mptune.analysis.arms import (
    ArmScores,
    Difference,
    Selection,
    compare,
    selection_probabilities,
    share_a_seed,
)
from mptune.analysis.compute import EquivalentCompute, curves_of, equivalent_compute, mean_curve
from mptune.analysis.crossed import Array
from mptune.analysis.moderation import out_of_play
from mptune.analysis.ranking import ACCUMULATED, FIXED_15, side
from mptune.analysis.sequential import schedule
from mptune.spec.schema import Comparison
from mptune.trial import RETRIED, LearningPoint, Message, Prepared, Trial

Scores: TypeAlias = Callable[[Trial], Mapping[str, Array]]
"""The stored scores of a trial: `nats_per_sequence` [N] and, if it had rungs, `at_rungs` [R, M],
as `mptune.analysis.intervals.by_group` gives them: one for each group of sequences.

Empty for a trial whose scores were not kept.
"""

Arms: TypeAlias = Mapping[str, Sequence[Trial]]
"""The trials of each arm, by the arm's name, in the order of the comparison."""


class ArmRuns(Message):
    """The training runs of one arm: how many failed, and how the others are spread.

    A failed run has no score, so it is no part of the differences.

    Attributes:
        runs: that ended.
        failed: of those: diverged, or failed in another way.
        low: end of the 95 % interval of the share that fails (Jeffreys).
        verdict: against the baseline, by Fisher's exact test, corrected for the number of arms;
            None for the baseline.
        seed_sd: of the scores, nats per sequence; None: one run.
        skewness: of the scores, corrected for their number; None with fewer than three. Negative:
            some runs are much worse than most, and few seeds may show none of them.
    """

    arm: str
    runs: int
    failed: int
    low: float
    high: float
    verdict: Literal["fails more often", "fails less often", "undecided"] | None
    seed_sd: float | None
    skewness: float | None


class ArmValues(Message):
    """Values of searched training dimensions that an arm has, and where they come from.

    Attributes:
        source: its policy's best trial of the search at its size; a ladder on seeds that are not
            compared; the recommended trial; or given in the arm.
        trial: number of the trial that they come from.
        tried: of a ladder: (learning rate, nats per token; None: the run failed).
    """

    arm: str
    values: dict[str, Any]
    source: Literal["own trial", "ladder", "recommended", "arm"]
    trial: int | None = None
    tried: tuple[tuple[float, float | None], ...] = ()

    def sentence(self) -> str:
        """The values and their origin as one line."""
        tried = ", ".join(
            f"{rate:.3g}: {'failed' if s is None else f'{s:.3f}'}" for rate, s in self.tried
        )
        origin = {
            "own trial": f"of trial {self.trial}, the best one of its policy and size",
            "ladder": f"the best of a ladder on seeds that are not compared ({tried})",
            "recommended": f"of trial {self.trial}, the recommended one",
            "arm": "given by the arm",
        }[self.source]
        return f"arm {self.arm!r} trains with {assignments(self.values)}, {origin}"


def assignments(values: Mapping[str, Any]) -> str:
    """`learning_rate 0.003, ...`, in the order of the search's dimensions."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


class ComparisonReport(Message):
    """Named arms over paired seeds, and their differences to the baseline.

    Attributes:
        arms: name -> its trials, one for each seed; `arm` of each is this name.
        learning: arm -> mean over seeds at each rung, the end included; its se carries both noises;
            arms without rungs are left out.
        runs: one for each arm, in their order.
        values: one for each arm if the search has dimensions of training; else empty.
        differences: each other arm against the baseline; empty while a pair is missing.
        compute: baseline and challengers, both ways, in every unit; empty without rungs.
    """

    baseline: str
    level: float = 0.95
    arms: dict[str, tuple[Trial, ...]]
    learning: dict[str, tuple[LearningPoint, ...]] = Field(default_factory=dict)
    runs: tuple[ArmRuns, ...] = ()
    values: tuple[ArmValues, ...] = ()
    differences: tuple[Difference, ...] = ()
    selection: tuple[Selection, ...] = ()
    compute: tuple[EquivalentCompute, ...] = ()

    def finished(self, arm: str) -> list[Trial]:
        """The trials of an arm that have a result."""
        return [trial for trial in self.arms.get(arm, ()) if trial.result is not None]

    def score(self, arm: str) -> float:
        """Mean LML over the finished trials of an arm, nats per token; NaN without any."""
        scores = [trial.nats_per_token for trial in self.finished(arm)]
        return math.fsum(scores) / len(scores) if scores else math.nan


class Asked(Message):
    """A comparison as it was asked for; its JSON is stored with the study.

    Attributes:
        keys: arm -> `TrialSpec.run_key` of its trials. An arm without a key has the trials that
            were queued under its name.
        values: what each arm took for the searched dimensions of training.
    """

    comparison: Comparison
    keys: dict[str, str]
    values: tuple[ArmValues, ...] = ()

    @property
    def baseline(self) -> str:
        """Name of the arm that the others are compared with; the first one by default."""
        return self.comparison.baseline or next(iter(self.comparison.arms))

    def arms(self, compared: Sequence[Trial]) -> dict[str, list[Trial]]:
        """The trials of each arm, also if they were queued under another name."""
        by_key = [(trial.spec.run_key() if trial.spec else None, trial) for trial in compared]
        return {
            name: [t for key, t in by_key if (key == wanted if wanted else t.arm == name)]
            for name in self.comparison.arms
            for wanted in [self.keys.get(name)]
        }


def comparison_report(
    asked: Asked | None, compared: Sequence[Trial], prepared: Prepared | None, scores: Scores
) -> ComparisonReport | None:
    """The comparison of the arms; None if there is nothing to compare yet."""
    if asked is None or not compared or prepared is None:
        return None
    arms, level = asked.arms(compared), asked.comparison.level
    found = (curves_of(name, trials, scores) for name, trials in arms.items())
    curves = [c for c in found if c is not None]
    paired = _paired(asked.baseline, arms, prepared, scores)
    with_baseline = any(c.name == asked.baseline for c in curves)
    return ComparisonReport(
        baseline=asked.baseline,
        level=level,
        arms={
            name: tuple(trial.model_copy(update={"arm": name}) for trial in trials)
            for name, trials in arms.items()
        },
        learning={c.name: mean_curve(c) for c in curves},
        runs=tuple(runs_of(arms, asked.baseline)),
        values=asked.values,
        differences=tuple(_scoped(d, arms[d.arm]) for d in _differences(asked, paired)),
        selection=tuple(selection_probabilities(paired)) if share_a_seed(paired) else (),
        compute=tuple(equivalent_compute(curves, asked.baseline, level)) if with_baseline else (),
    )


def _scoped(difference: Difference, trials: Sequence[Trial]) -> Difference:
    """With the number of groups, where it is too small for a claim about others."""
    groups = next(t.result.lml.few_groups for t in trials if t.result is not None)
    if groups is None:
        return difference
    return replace(difference, few_groups=groups, sequences_needed=None)


def runs_of(arms: Arms, baseline: str) -> Iterator[ArmRuns]:
    """Failures and spread of each arm's runs; those that a machine broke off do not count."""
    from scipy.special import betaincinv
    from scipy.stats import fisher_exact, skew

    ended = {
        name: [t for t in trials if t.result or (t.state == "FAIL" and t.reason not in RETRIED)]
        for name, trials in arms.items()
    }
    failures = {name: sum(t.result is None for t in trials) for name, trials in ended.items()}
    expected = len(ended[baseline]) - failures[baseline], failures[baseline]
    for name, trials in ended.items():
        n, failed = len(trials), failures[name]
        verdict = None
        if name != baseline:
            p = fisher_exact([expected, (n - failed, failed)]).pvalue * (len(arms) - 1)
            more = failed * len(ended[baseline]) > failures[baseline] * n
            verdict = "fails more often" if more else "fails less often"
            verdict = verdict if p <= 0.05 else "undecided"
        scores = [t.result.lml.nats_per_token for t in trials if t.result]
        skewness = float(skew(scores, bias=False)) if len(scores) > 2 else math.nan
        yield ArmRuns(
            arm=name,
            runs=n,
            failed=failed,
            low=float(betaincinv(failed + 0.5, n - failed + 0.5, 0.025)) if failed else 0.0,
            high=float(betaincinv(failed + 0.5, n - failed + 0.5, 0.975)) if failed < n else 1.0,
            verdict=verdict,
            seed_sd=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            skewness=skewness if math.isfinite(skewness) else None,
        )


def main_difference(comparison: ComparisonReport) -> Difference:
    """The pair that the study is about: accumulated and fixed 15 % if compared, else the first."""
    sides = {name: side(arm[0].policy) for name, arm in comparison.arms.items() if arm}
    main = {FIXED_15, ACCUMULATED}
    pairs = comparison.differences
    return next((d for d in pairs if {sides.get(d.arm), sides.get(d.baseline)} == main), pairs[0])


def leading_arm(comparison: ComparisonReport | None) -> str | None:
    """The arm with the highest mean LML; None if no arm has a finished trial."""
    if comparison is None:
        return None
    return max(filter(comparison.finished, comparison.arms), key=comparison.score, default=None)


def difference_of(trial: Trial, comparison: ComparisonReport | None) -> Difference | None:
    """The first difference of an arm that has the trial's policy; None if there is none."""
    arms = comparison.arms.items() if comparison else ()
    own = {name for name, arm in arms if arm and arm[0].policy_label == trial.policy_label}
    differences = comparison.differences if comparison else ()
    return next((d for d in differences if d.arm in own or d.baseline in own), None)


def chosen_policy(best: Trial | None, comparison: ComparisonReport | None) -> Trial | None:
    """A trial of the recommended policy.

    It is the search's best trial, unless an arm beat its policy on paired seeds, which outweigh
    one run: then it is a trial of that arm. Without a search it is a trial of the leading arm.
    None if nothing has finished.
    """
    names = comparison.arms if comparison else ()
    arms = {name: runs[0] for name in names if comparison and (runs := comparison.finished(name))}
    if best is None:
        leader = leading_arm(comparison)
        return arms[leader] if leader else None
    winners = []
    for difference in comparison.differences if comparison else ():
        if difference.verdict not in ("better", "worse"):
            continue
        ahead, behind = arms.get(difference.arm), arms.get(difference.baseline)
        if difference.verdict == "worse":
            ahead, behind = behind, ahead
        if ahead and behind and behind.policy_label == best.policy_label:
            winners.append(ahead)
    if comparison is None or not winners:
        return best
    return max(winners, key=lambda trial: comparison.score(trial.arm or ""))


def undecided_arms(
    asked: Asked, compared: Sequence[Trial], prepared: Prepared, scores: Scores
) -> list[str]:
    """Arms that need more seeds, the baseline among them; empty if every pair is decided."""
    paired = _paired(asked.baseline, asked.arms(compared), prepared, scores)
    undecided = [
        d for d in _differences(asked, paired, forecasts=False) if d.verdict == "undecided"
    ]
    names = {name for d in undecided for name in (d.arm, d.baseline)}
    return [name for name in asked.comparison.arms if name in names]


def arm_scores(
    name: str, trials: Sequence[Trial], prepared: Prepared, scores: Scores
) -> ArmScores | None:
    """The scores of the finished trials of an arm, by seed; None if there are none."""
    rows = [
        (trial, trial.seed, kept["nats_per_sequence"])
        for trial in trials
        if trial.result is not None and trial.seed is not None
        if "nats_per_sequence" in (kept := scores(trial))
    ]
    if not rows:
        return None
    first = rows[0][0]
    return ArmScores(
        name=name,
        nats_per_sequence_SN=np.stack([nats_N for *_, nats_N in rows]),
        seeds=tuple(seed for _, seed, _ in rows),
        tokens_per_sequence=prepared.mean_length,
        bytes_per_token=prepared.bytes_per_token,
        out_of_play=out_of_play(first.policy, prepared.length),
    )


def _paired(baseline: str, arms: Arms, prepared: Prepared, scores: Scores) -> list[ArmScores]:
    """The arms that share a seed with the baseline; empty if nothing can be compared."""
    found = (arm_scores(name, trials, prepared, scores) for name, trials in arms.items())
    scored = [arm for arm in found if arm is not None]
    base = next((s for s in scored if s.name == baseline), None)
    paired = [s for s in scored if base is not None and set(s.seeds) & set(base.seeds)]
    return paired if len(paired) > 1 else []


def _differences(
    asked: Asked, paired: Sequence[ArmScores], forecasts: bool = True
) -> list[Difference]:
    """Each arm against the baseline, corrected for the looks if seeds are added until decided."""
    if not paired:
        return []
    comparison = asked.comparison
    looks: tuple[int, ...] = ()
    if comparison.max_seeds is not None:
        looks = schedule(comparison.seeds, comparison.max_seeds)
    return compare(paired, asked.baseline, comparison.level, comparison.margin, looks, forecasts)
