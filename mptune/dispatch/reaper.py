"""Ends what a driver leaves of its own Ray, however the driver ends.

Ray's services die with a killed driver, but its agents outlive it by a minute, its workers by up
to a quarter of one, and what those have started (a compiler) by as long as it takes.

Runs as a script beside the driver and imports nothing of this package. It waits until its standard
input closes, then kills every process of the sessions in its arguments, which are `leader:start`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 5.0


def session_and_start(pid: int | str) -> tuple[int, int]:
    """A process's session, and when it started in clock ticks since boot.

    Raises:
        OSError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[3]), int(fields[19])


def members(sessions: Collection[int]) -> Iterator[int]:
    """The processes of these sessions that still run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            runs = (process / "cmdline").read_bytes()  # empty for a zombie
            if runs and session_and_start(process.name)[0] in sessions:
                yield int(process.name)


def still_the_same(leader: int, start: int) -> bool:
    """Whether the session is the one that was meant: nobody else leads one of that number."""
    with suppress(OSError):
        return session_and_start(leader)[1] == start
    return True


def reap(watched: list[str]) -> None:
    """Kill until none is left: a process may have started another in between."""
    pairs = [(int(leader), int(start)) for leader, _, start in (w.partition(":") for w in watched)]
    sessions = {leader for leader, start in pairs if still_the_same(leader, start)}
    give_up = time.monotonic() + PATIENCE_S
    while (pids := list(members(sessions))) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    reap(sys.argv[1:])
