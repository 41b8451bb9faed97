"""The comparison of named arms: which trials belong to each arm, and what is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from pydantic import Field

from mptune.analysis.arms import ArmScores, Difference, Selection, compare, selection_probabilities
from mptune.analysis.compute import EquivalentCompute, curves_of, equivalent_compute, mean_curve
from mptune.analysis.crossed import Array
from mptune.analysis.ranking import ACCUMULATED, FIXED_15, side
from mptune.analysis.sequential import schedule
from mptune.spec.schema import Comparison
from mptune.trial import LearningPoint, Message, Prepared, Trial

Scores: TypeAlias = Callable[[Trial], Mapping[str, Array]]
"""The stored scores of a trial: `nats_per_sequence` [N] and, if it had rungs, `at_rungs` [R, M].

Empty for a trial whose scores were not kept.
"""

Arms: TypeAlias = Mapping[str, Sequence[Trial]]
"""The trials of each arm, by the arm's name, in the order of the comparison."""


class ComparisonReport(Message):
    """Named arms over paired seeds, and their differences to the baseline."""

    baseline: str
    level: float = 0.95
    arms: dict[str, tuple[Trial, ...]] = Field(
        description="name -> its trials, one for each seed; `arm` of each is this name"
    )
    learning: dict[str, tuple[LearningPoint, ...]] = Field(
        default_factory=dict,
        description="arm -> mean over seeds at each rung, the end included; its se carries both "
        "noises; arms without rungs are left out",
    )
    differences: tuple[Difference, ...] = Field(
        (), description="each other arm against the baseline; empty while a pair is missing"
    )
    selection: tuple[Selection, ...] = ()
    compute: tuple[EquivalentCompute, ...] = Field(
        (), description="baseline and challengers, both ways, in every unit; empty without rungs"
    )

    def finished(self, arm: str) -> list[Trial]:
        """The trials of an arm that have a result."""
        return [trial for trial in self.arms.get(arm, ()) if trial.result is not None]

    def score(self, arm: str) -> float:
        """Mean LML over the finished trials of an arm, nats per token; NaN without any."""
        scores = [trial.nats_per_token for trial in self.finished(arm)]
        return math.fsum(scores) / len(scores) if scores else math.nan


@dataclass(frozen=True)
class Asked:
    """A comparison as it was asked for.

    Attributes:
        keys: arm -> `TrialSpec.run_key` of its trials. An arm without a key has the trials that
            were queued under its name.
    """

    comparison: Comparison
    keys: Mapping[str, str]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Asked:
        """Inverse of `as_json`."""
        return cls(Comparison.model_validate(stored["comparison"]), stored["keys"])

    def as_json(self) -> dict[str, Any]:
        """As plain values for the study's storage."""
        return {"comparison": self.comparison.model_dump(mode="json"), "keys": dict(self.keys)}

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
        differences=tuple(_differences(asked, paired)),
        selection=tuple(selection_probabilities(paired)) if paired else (),
        compute=tuple(equivalent_compute(curves, asked.baseline, level)) if with_baseline else (),
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
    arms = {name: arm[0] for name, arm in comparison.arms.items() if arm} if comparison else {}
    if best is None:
        leader = leading_arm(comparison)
        return arms[leader] if leader else None
    for difference in comparison.differences if comparison else ():
        if difference.verdict not in ("better", "worse"):
            continue
        ahead, behind = arms.get(difference.arm), arms.get(difference.baseline)
        if difference.verdict == "worse":
            ahead, behind = behind, ahead
        if ahead and behind and behind.policy_label == best.policy_label:
            return ahead
    return best


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
        (trial.seed, nats_N)
        for trial in trials
        if trial.result is not None and trial.seed is not None
        if (nats_N := scores(trial).get("nats_per_sequence")) is not None
    ]
    if not rows:
        return None
    return ArmScores(
        name=name,
        nats_per_sequence_SN=np.stack([nats_N for _, nats_N in rows]),
        seeds=tuple(seed for seed, _ in rows),
        tokens_per_sequence=prepared.heldout_tokens / prepared.heldout_sequences,
        bytes_per_token=prepared.bytes_per_token,
    )


def scores_of_arms(arms: Arms, prepared: Prepared, scores: Scores) -> list[ArmScores]:
    """`arm_scores` of every arm that has any."""
    found = (arm_scores(name, trials, prepared, scores) for name, trials in arms.items())
    return [arm for arm in found if arm is not None]


def _paired(baseline: str, arms: Arms, prepared: Prepared, scores: Scores) -> list[ArmScores]:
    """The arms that share a seed with the baseline; empty if nothing can be compared."""
    scored = scores_of_arms(arms, prepared, scores)
    base = next((s for s in scored if s.name == baseline), None)
    paired = [s for s in scored if base is not None and set(s.seeds) & set(base.seeds)]
    common = set.intersection(*(set(s.seeds) for s in paired)) if paired else set()
    return paired if len(paired) > 1 and common else []


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
