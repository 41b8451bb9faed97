"""Finished trials by score, and the kinds of policy that reports group them by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from mptune.analysis.intervals import NORMAL_95, Rule, half_width, lml_half_width, score_by_rule
from mptune.trial import Trial, TrialResult

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Side: TypeAlias = Literal["fixed 15 %", "accumulated"]
"""The two policies that the study is about."""

FIXED_15: Side = "fixed 15 %"
ACCUMULATED: Side = "accumulated"


@dataclass(frozen=True)
class Flip:
    """Fixed 15 % and accumulated by two criteria, at one model size.

    Attributes:
        losses: loss at 15 % masking, nats per masked position, of both policies.
        scores: accumulated LML estimate, nats per token, of both policies.
        loss_half_width, score_half_width: of the 95 % interval of each difference, over training
            seeds where the two have at least two in common, else over sequences and masks (for
            which the two scores are taken as independent: it is too wide, never too narrow).
        seeds: that they have in common; 0 for single runs of the search.
    """

    size_label: str
    losses: Mapping[Side, float]
    scores: Mapping[Side, float]
    loss_half_width: float
    score_half_width: float
    seeds: int

    @property
    def is_decided(self) -> bool:
        """Whether the intervals of both differences exclude zero."""
        loss, score = (
            abs(values[ACCUMULATED] - values[FIXED_15]) for values in (self.losses, self.scores)
        )
        return loss > self.loss_half_width and score > self.score_half_width

    @property
    def by_loss(self) -> Side:
        """The policy with the lower loss; fixed 15 % if they are equal."""
        return ACCUMULATED if self.losses[ACCUMULATED] < self.losses[FIXED_15] else FIXED_15

    @property
    def by_lml(self) -> Side:
        """The policy with the higher LML; fixed 15 % if they are equal."""
        return ACCUMULATED if self.scores[ACCUMULATED] > self.scores[FIXED_15] else FIXED_15


def ranking(trials: Iterable[Trial], rule: Rule = "heldout") -> list[Trial]:
    """Finished trials by LML in nats per token, best first; the same point counts once.

    With another rule of `search.choose_by`, by the score that it compares, where there is one.
    Equal scores are in the order of their numbers.
    """

    def key(trial: Trial) -> tuple[float, int]:
        decisive = score_by_rule([trial.result], rule) if trial.result else None
        return -(trial.nats_per_token if decisive is None else decisive), trial.number

    finished = (trial for trial in trials if trial.finished)
    return sorted(first_of_each(finished, lambda t: t.require_result().fingerprint), key=key)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their key, in the order in which keys first occur."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def first_of_each(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """The first of the items with each key."""
    return [group[0] for group in grouped(items, key).values()]


def finalists(trials: Iterable[Trial], most: int, rule: Rule = "heldout") -> list[Trial]:
    """The best trials of the points that are worth confirming, best first, at most `most`."""
    return first_of_each(ranking(trials, rule), point_of)[:most]


def point_of(trial: Trial) -> str:
    """What runs of one point have in common; without a spec a trial is a point of its own."""
    return trial.spec.run_key() if trial.spec else f"{trial.stage} {trial.number}"


def best_per_policy(ranked: Sequence[Trial]) -> list[Trial]:
    """The best trial of each kind of policy, best first."""
    return first_of_each(ranked, policy_kind)


def runner_up(ranked: Sequence[Trial], best: Trial) -> Trial | None:
    """The best trial with another kind of policy than `best`, or None."""
    own = policy_kind(best)
    return next((trial for trial in ranked if policy_kind(trial) != own), None)


def front(ranked: Sequence[Trial]) -> list[Trial]:
    """Trials that score higher than every trial with the same FLOPs or fewer, by FLOPs."""
    found: list[Trial] = []
    for trial in sorted(ranked, key=lambda t: (t.require_result().cost.flops, -t.nats_per_token)):
        if not found or trial.nats_per_token > found[-1].nats_per_token:
            found.append(trial)
    return found


def policy_kind(trial: Trial) -> str:
    """What trials are grouped by: the kind of policy, with fixed 15 % a kind of its own."""
    if is_fixed_15(trial.policy):
        return FIXED_15
    return str(trial.policy.get("kind", trial.policy_label))


def side(policy: Mapping[str, Any]) -> Side | None:
    """Which of the two policies that the study is about this is, or None."""
    if is_fixed_15(policy):
        return FIXED_15
    return ACCUMULATED if is_accumulated(policy) else None


def is_fixed_15(policy: Mapping[str, Any]) -> bool:
    """Whether the policy is the common default: a fixed rate of 15 %."""
    return policy.get("kind") == "fixed" and math.isclose(float(policy.get("rate", 0)), 0.15)


def is_accumulated(policy: Mapping[str, Any]) -> bool:
    """Whether the policy trains on the LML itself: uniform counts of equal total weight."""
    return (
        policy.get("kind") == "uniform"
        and (policy.get("low", 0.0), policy.get("high", 1.0)) == (0.0, 1.0)
        and policy.get("reduction") != "token_mean"
    )


def loss_at(result: TrialResult, rate: float) -> float | None:
    """Loss at one mask rate in nats per masked position, or None if it was not recorded."""
    return next((r.loss for r in result.rates if math.isclose(r.rate, rate)), None)


def accuracy_at(result: TrialResult, rate: float) -> float | None:
    """Share of masked positions predicted exactly at one mask rate, if it was recorded."""
    return next((r.accuracy for r in result.rates if math.isclose(r.rate, rate)), None)


def flips(arms: Iterable[Sequence[Trial]], trials: Iterable[Trial]) -> list[Flip]:
    """Fixed 15 % and accumulated at each size that has both.

    Args:
        arms: trials of each arm of a comparison; means over their seeds precede single trials.
        trials: of the search; the best trial of each policy counts.
    """
    found: dict[str, dict[Side, Sequence[Trial]]] = {}
    for group in [*arms, *([trial] for trial in ranking(trials))]:
        which = side(group[0].policy) if group else None
        judged = [t for t in group if t.result is not None and loss_at(t.result, 0.15) is not None]
        if which and judged:
            found.setdefault(group[0].size_label, {}).setdefault(which, judged)
    return [_flip(size, sides) for size, sides in found.items() if len(sides) == 2]


def _flip(size_label: str, sides: Mapping[Side, Sequence[Trial]]) -> Flip:
    means: list[dict[Side, float]] = []
    half_widths = []
    by_seed = {
        which: {t.seed: t.require_result() for t in group if t.seed is not None}
        for which, group in sides.items()
    }
    common = sorted(by_seed[FIXED_15].keys() & by_seed[ACCUMULATED].keys())
    for value in (_loss_15, _score):
        means.append({
            which: math.fsum(value(t.require_result())[0] for t in group) / len(group)
            for which, group in sides.items()
        })  # fmt: skip
        if len(common) > 1:
            paired = [
                value(by_seed[ACCUMULATED][seed])[0] - value(by_seed[FIXED_15][seed])[0]
                for seed in common
            ]
            se = statistics.stdev(paired) / math.sqrt(len(paired))
            half_widths.append(half_width(se, len(paired) - 1))
        else:
            # Both on the same sequences and masks, so this is an upper limit.
            ses = [value(t.require_result())[1] for group in sides.values() for t in group[:1]]
            half_widths.append(half_width(math.hypot(*ses)))
    return Flip(size_label, means[0], means[1], half_widths[0], half_widths[1], len(common))


def _loss_15(result: TrialResult) -> tuple[float, float]:
    """Loss at 15 % and its standard error, nats per masked position."""
    rate = next(r for r in result.rates if math.isclose(r.rate, 0.15))
    return rate.loss, rate.loss_se


def _score(result: TrialResult) -> tuple[float, float]:
    """LML and its standard error over sequences and masks, nats per token."""
    return result.lml.nats_per_token, lml_half_width(result.lml) / NORMAL_95
