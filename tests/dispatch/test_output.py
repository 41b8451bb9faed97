"""What a rank prints, by whatever means, is in the trial's directory, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mptune.dispatch import output

PRINTS = """
import ctypes, os, sys
from pathlib import Path
from mptune.dispatch import output
log = Path(sys.argv[1])
print("before")
for attempt in (1, 2):
    with output.kept(log, 3):
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
    with output.kept(tmp_path / "file" / "rank-0.log", 0):
        os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with output.kept(tmp_path / "rank-0.log", 0):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
