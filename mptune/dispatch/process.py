"""Processes of this machine: what a rank prints, how its memory grows, and how sessions end.

Run as a script beside a driver, this file ends the Ray that the driver started, however the driver
ends. Ray's services die with a killed driver, but its agents outlive it by a minute, its workers by
up to 15 s, and programs that these have started (a compiler) by as long as they take. The script
waits until its standard input closes, then kills every process of the sessions in its arguments,
`LEADER:START_TICKS`. So this file imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mptune.spec.schema import Resources

STANDARD = (1, 2)
"""File descriptors of output and errors: C libraries print there, too."""

KILL_TIMEOUT_S = 5.0


@contextmanager
def output_to(log: Path, rank: int) -> Iterator[None]:
    """Append what this process prints to `log`; a second attempt of a trial follows the first.

    If the file cannot be written, the output goes where it went before: a trial does not fail for
    its output.
    """
    now, host, file = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname(), -1
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, f"--- rank {rank}, process {os.getpid()} on {host}, {now}\n".encode())
    except OSError:
        if file >= 0:
            os.close(file)
        yield
        return
    before = [os.dup(standard) for standard in STANDARD]
    _redirect([file, file])
    try:
        yield
    finally:
        _redirect(before)
        for descriptor in (file, *before):
            os.close(descriptor)


def _redirect(to: list[int]) -> None:
    """Flush first: what was printed before belongs in the file of before."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no space left, or closed
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    for descriptor, standard in zip(to, STANDARD, strict=True):
        os.dup2(descriptor, standard)


@dataclass
class MemoryGrowth:
    """How far each kind of memory of this process is above the least it had between two trials."""

    _least: dict[str, int] = field(default_factory=dict)

    def excess(self, resources: Resources, **now: int) -> str | None:
        """The first kind, of which there are `now` bytes, that has grown beyond its limit."""
        for kind, size in now.items():
            self._least[kind] = min(size, self._least.get(kind, size))
        for kind, size in now.items():
            grown_mb, key = (size - self._least[kind]) / 1e6, f"{kind}_growth_mb"
            if grown_mb > getattr(resources, key):
                return f"{grown_mb:.0f} MB ({key})"
        return None


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot.

    Raises:
        OSError: there is no such process.
    """
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def session_members(sessions: Collection[int]) -> list[int]:
    """The processes of these sessions that still run, without zombies."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            pid = int(process.name)
            if os.getsid(pid) in sessions and (process / "cmdline").read_bytes():
                found.append(pid)
    return found


def kill_sessions(leaders: Collection[str]) -> None:
    """Kill until no process is left: one may start another in between."""
    sessions = set()
    for leader, _, start in (text.partition(":") for text in leaders):
        try:
            reused = start_ticks(int(leader)) != int(start)
        except OSError:  # the leader has ended, other processes of its session may run
            reused = False
        if not reused:
            sessions.add(int(leader))
    give_up = time.monotonic() + KILL_TIMEOUT_S
    while (pids := session_members(sessions)) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    kill_sessions(sys.argv[1:])
