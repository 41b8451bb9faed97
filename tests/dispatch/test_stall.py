"""When a silent trial counts as stalled, and what is kept of it; times are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mptune.dispatch.faults import (
    ANSWER_TIMEOUT_S,
    GangLost,
    StackReport,
    StallWatch,
    describe_silent,
)

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


def report(file: Path, *pids: int) -> StackReport:
    return StackReport(GangLost("stalled", "does nothing"), file, pids, due=10.0)


def test_stacks_are_written_once_all_ranks_have_answered(tmp_path: Path) -> None:
    made = report(tmp_path / "stacks.txt", 11, 12)
    made.stacks[1] = "in forward"
    made.check(1.0)
    made.stacks[0] = "in backward"
    with pytest.raises(GangLost, match="does nothing"):
        made.check(1.0)
    assert made.file.read_text() == (
        "--- rank 0 (pid 11)\nin backward\n--- rank 1 (pid 12)\nin forward\n"
    )


def test_a_rank_that_does_not_answer_in_time_is_described_from_outside(tmp_path: Path) -> None:
    made = report(tmp_path / "stacks.txt", os.getpid())
    made.check(10.0)
    with pytest.raises(GangLost):
        made.check(10.1)
    assert "does not answer; state: " in made.file.read_text()


def test_stacks_that_cannot_be_written_do_not_hide_the_stall(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GangLost, match="does nothing"):
        report(tmp_path / "file" / "stacks.txt").check(0.0)


def test_a_process_that_has_ended_does_not_answer() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert describe_silent(ended.pid) == "does not answer\n"
