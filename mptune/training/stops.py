"""How a trial is asked to stop: on all ranks at once, between two steps or two scoring batches."""

from __future__ import annotations

from mptune.trial import StopReason

STOPS: tuple[StopReason | None, ...] = (None, "pruned", "interrupted", "preempted")
"""Rank 0's stop reason travels between the ranks as its index; any rank may be preempted."""


class StoppedInScoring(Exception):
    """Raised on every rank, between the same two batches."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason


def vote(asked: StopReason | None, first: bool) -> tuple[float, float]:
    """What a rank that was asked to stop, or not, adds to two sums over the ranks."""
    why = STOPS.index(asked) if first and asked != "preempted" else 0
    return float(why), float(asked == "preempted")


def agreed_stop(why: float, preempted: float) -> StopReason | None:
    """What the two sums come to, on every rank."""
    return STOPS[int(why)] or ("preempted" if preempted else None)
