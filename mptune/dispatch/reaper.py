"""Ends what a driver leaves of its own Ray, however the driver ends.

Ray's services die with a killed driver, but its agents outlive it by a minute, its workers by up
to a quarter of one, and what those have started (a compiler) by as long as it takes.

Runs as a script beside the driver and imports nothing of this package. It waits until its standard
input closes, then kills every process that was born with its mark in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "MPTUNE_RAY"
"""Environment variable of all processes of one Ray; the value is unique."""

PATIENCE_S = 5.0


def marked(value: str) -> Iterator[int]:
    """Processes with this mark; those of other users cannot be read, and are none."""
    entry = f"{MARK}={value}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


def reap(value: str) -> None:
    """Kill until none is left: a process may have started another in between."""
    give_up = time.monotonic() + PATIENCE_S
    while (pids := list(marked(value))) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    reap(sys.argv[1])
