"""Finished trials by score, and the kinds of policy that reports group them by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from mptune.analysis.robustness import worst_domain
from mptune.trial import Trial, TrialResult

Side: TypeAlias = Literal["fixed 15 %", "accumulated"]
"""The two policies that the study is about."""

FIXED_15: Side = "fixed 15 %"
ACCUMULATED: Side = "accumulated"


def ranking(trials: Iterable[Trial], by_worst: bool = False) -> list[Trial]:
    """Finished trials by LML in nats per token, best first; the same point counts once.

    With `by_worst` they are sorted by the score on their worst domain, where there are domains.
    Equal scores are in the order of their numbers.
    """

    def key(trial: Trial) -> tuple[float, int]:
        worst = worst_domain([trial.result]) if by_worst and trial.result else None
        return -(worst[1] if worst else trial.nats_per_token), trial.number

    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.finished and trial.result is not None:
            first.setdefault(trial.result.fingerprint, trial)
    return sorted(first.values(), key=key)


def finalists(trials: Iterable[Trial], most: int, by_worst: bool = False) -> list[Trial]:
    """The trials of a search that are worth confirming, best first, at most `most`."""
    return ranking(trials, by_worst)[:most]


def best_per_policy(ranked: Sequence[Trial]) -> list[Trial]:
    """The best trial of each kind of policy, best first."""
    best: dict[str, Trial] = {}
    for trial in ranked:
        best.setdefault(policy_kind(trial), trial)
    return list(best.values())


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
