"""When a silent trial counts as stalled; times are given."""

from __future__ import annotations

from mptune.dispatch.faults import ANSWER_TIMEOUT_S, StallWatch

LIMIT_S = 60.0


def test_rank_0_is_asked_once_after_the_limit_and_then_given_up() -> None:
    watch = StallWatch(100.0)
    assert watch.check(LIMIT_S, 160.0) == "wait"
    assert watch.check(LIMIT_S, 160.1) == "ask"
    assert watch.check(LIMIT_S, 160.2) == "wait", "the question is on its way"
    assert watch.check(LIMIT_S, 160.0 + ANSWER_TIMEOUT_S) == "wait"
    assert watch.check(LIMIT_S, 160.1 + ANSWER_TIMEOUT_S) == "stalled"


def test_an_answer_starts_the_limit_at_the_last_step_and_allows_the_next_question() -> None:
    watch = StallWatch(100.0)
    assert watch.check(LIMIT_S, 161.0) == "ask"
    watch.heard(150.0)
    assert watch.check(LIMIT_S, 210.0) == "wait"
    assert watch.check(LIMIT_S, 210.1) == "ask"
