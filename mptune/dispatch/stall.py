"""Detects trials that make no progress, and stores the stacks of their ranks.

Times are seconds from any origin, given by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mptune.dispatch.faults import GangLost
from mptune.paths import write_text

ANSWER_TIMEOUT_S = 5.0
"""For a rank that seems to hang to report its idle time or its stacks; for a death to be known."""


@dataclass
class StallWatch:
    """Decides when a silent trial is stalled. Rank 0 is asked first: long steps are no stall."""

    _heard_at: float
    _asked: bool = False

    def heard(self, at: float) -> None:
        """Rank 0 sent an event, or reported its last step, at this time."""
        self._heard_at, self._asked = at, False

    def check(self, limit_s: float, now: float) -> Literal["wait", "ask", "stalled"]:
        """What to do now: wait, ask rank 0 for its idle time, or give the trial up."""
        silent_s = now - self._heard_at
        if silent_s > limit_s + ANSWER_TIMEOUT_S:
            return "stalled"
        if silent_s > limit_s and not self._asked:
            self._asked = True
            return "ask"
        return "wait"


@dataclass
class StackReport:
    """Collects the stacks of all ranks of a stalled gang, until `due`."""

    lost: GangLost
    file: Path
    pids: Sequence[int]
    due: float
    stacks: dict[int, str] = field(default_factory=dict)
    """Of the ranks that have answered."""

    def check(self, now: float) -> None:
        """Write the stacks once all ranks have answered, or the time is up.

        Raises:
            GangLost: they are written.
        """
        if len(self.stacks) < len(self.pids) and now <= self.due:
            return
        text = "".join(
            f"--- rank {rank} (pid {pid})\n{self.stacks.get(rank) or describe_silent(pid)}\n"
            for rank, pid in enumerate(self.pids)
        )
        with suppress(OSError):
            write_text(self.file, text)
        raise self.lost


def describe_silent(pid: int) -> str:
    """The state of a process that does not answer, from /proc if it runs on this machine."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "does not answer\n"
    state = next(line for line in status.splitlines() if line.startswith("State"))
    return f"does not answer; {state.replace(chr(9), ' ')}\n"
