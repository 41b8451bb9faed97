"""The processes of this machine: their output, their memory, and the end of their sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from mptune.dispatch import process
from mptune.dispatch.process import MemoryGrowth
from mptune.spec.schema import Resources

PRINTS = """
import ctypes, os, sys
from pathlib import Path
from mptune.dispatch import process
log = Path(sys.argv[1])
print("before")
for attempt in (1, 2):
    with process.output_to(log, 3):
        print("python", attempt)
        print("error", attempt, file=sys.stderr)
        ctypes.CDLL(None).puts(b"of C %d" % attempt)
        os.system(f"echo of a child {attempt}")
print("after")
"""


def test_all_that_is_printed_meanwhile_is_kept_attempt_after_attempt(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank-3.log"
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(log)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")
    lines = log.read_text().splitlines()
    assert [line.split(", process")[0] for line in (lines[0], lines[5])] == ["--- rank 3"] * 2
    for attempt, kept in ((1, lines[1:5]), (2, lines[6:])):
        wanted = [f"python {attempt}", f"error {attempt}", f"of C {attempt}"]
        assert sorted(kept) == sorted([*wanted, f"of a child {attempt}"])


def test_without_a_place_it_goes_where_it_went(tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("")
    with process.output_to(tmp_path / "file" / "rank-0.log", 0):
        os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with process.output_to(tmp_path / "rank-0.log", 0):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# --- memory ---
LIMITS = Resources(memory_growth_mb=10, gpu_memory_growth_mb=5)
MB = 10**6


def excess(*footprints: tuple[int, int]) -> str | None:
    growth, found = MemoryGrowth(), None
    for host, gpu in footprints:
        found = growth.excess(LIMITS, memory=host * MB, gpu_memory=gpu * MB)
    return found


def test_what_a_rank_has_after_its_first_trial_is_its_own():
    assert excess((900, 400)) is None
    assert excess((900, 400), (910, 405)) is None


def test_growth_counts_from_the_least_there_was():
    assert excess((100, 0), (111, 0)) == "11 MB (memory_growth_mb)"
    assert excess((900, 0), (100, 0), (111, 0)) is not None
    assert excess((100, 0), (105, 0), (100, 0)) is None


def test_a_gpu_has_a_limit_of_its_own():
    assert excess((100, 10), (100, 16)) == "6 MB (gpu_memory_growth_mb)"


# --- sessions ---

SLEEPER = "import subprocess, sys; subprocess.Popen(['sleep', '600']); sys.stdin.read()"


def test_the_sessions_that_are_named_end_when_the_input_closes_and_no_others() -> None:
    sleepers = [
        subprocess.Popen(
            [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, start_new_session=True
        )
        for _ in range(2)
    ]
    named, other = (sleeper.pid for sleeper in sleepers)
    try:
        children = psutil.Process(named).children
        while not children():
            assert sleepers[0].poll() is None
        (child,) = children()
        leader = f"{named}:{process.start_ticks(named)}"
        reused = f"{other}:{process.start_ticks(other) + 1}"
        cleanup = subprocess.Popen(
            [sys.executable, "-I", "-S", process.__file__, leader, reused], stdin=subprocess.PIPE
        )
        assert set(process.session_members({named})) == {named, child.pid}
        cleanup.communicate(timeout=60)
        assert process.session_members({named}) == []
        assert other in process.session_members({other})
    finally:
        for sleeper in sleepers:
            for pid in process.session_members({sleeper.pid}):
                os.kill(pid, signal.SIGKILL)
            sleeper.communicate()
