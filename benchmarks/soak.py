"""What grows in a search of many trials that take seconds, all on one gang.

    python benchmarks/soak.py [--quick] [--trials 500] [--hours H] [--json FILE]

The search runs on this machine: two DeepSpeed ranks on CPU, the sampler exposure, a study in
SQLite. Measured every second: private memory (resident, but not shared), open files and threads of
the driver, of its largest rank, and of all processes of Ray together; what lies in /dev/shm; the
study; the run directory. The table has the mean of each tenth of the trainings that were started,
of memory the least: what is kept between decisions, for which the driver needs more for a moment
(`at most`). `change` is from the middle third to the last one. --quick runs 30 trials;
--hours stops the search after that time, as Ctrl-C does;
--json has a line for each second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from mptune.errors import InterruptedSearch
from mptune.paths import RunDirectory
from tests.faults.search import SPEC
from tests.launch.helpers import environment

Row = dict[str, float]

MEMORY = ("driver, MB", "rank, MB", "Ray, MB")

CHANGES = (
    "policy={choice: [{kind: fixed, rate: {float: [0.1, 0.6]}}, {kind: uniform}]}",
    "search.pruner={kind: freeze_thaw}",
    "search.certainty=null",
    "resources.workers=2",
    "resources.trials_per_gang=100000",
)


def size_mb(folder: Path, prefix: str = "") -> float:
    """Of all files below a folder whose names begin like this, on disk."""
    total = 0
    for inside, _, names in os.walk(folder):  # which skips folders that are removed meanwhile
        for name in filter(lambda name: name.startswith(prefix), names):
            with suppress(OSError):
                total += os.lstat(f"{inside}/{name}").st_blocks * 512
    return total / 1e6


def of_processes(driver: psutil.Process) -> Row:
    found: dict[str, list[tuple[float, int, int]]] = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            with process.oneshot():
                member = "Member" in " ".join(process.cmdline()[:1])
                part = "driver" if process == driver else "rank" if member else "Ray"
                memory = process.memory_info()
                private = (memory.rss - memory.shared) / 1e6
                values = private, process.num_fds(), process.num_threads()
                found.setdefault(part, []).append(values)
        except psutil.Error:  # ended meanwhile
            continue
    row: Row = {}
    for part, of_each in found.items():
        together = np.sum if part == "Ray" else np.max
        for unit, value in zip(("MB", "files", "threads"), together(of_each, axis=0), strict=True):
            row[f"{part}, {unit}"] = float(value)
    return row


def soak(trials: int, folder: Path, hours: float | None, log: Path) -> list[Row]:
    """What there was at each second of a search, by how many trainings had been started.

    Each is a line of `log`, too.
    """
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    sets = [word for value in (*CHANGES, f"search.trials={trials}") for word in ("--set", value)]
    run, rows, started = RunDirectory(folder / "run"), list[Row](), 0
    end = time.monotonic() + 3600 * (hours or math.inf)
    with (folder / "out.txt").open("w") as out, log.open("w", buffering=1) as lines:
        driver = psutil.Popen(
            [sys.executable, "-m", "mptune", "search", "spec.yaml", "--run-dir", "run", *sets],
            cwd=folder, env=environment(folder), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while driver.poll() is None:
            time.sleep(1)
            if time.monotonic() > end:
                driver.send_signal(signal.SIGINT)
                driver.wait()
                break
            if run.events.exists():
                started = run.events.read_text(encoding="utf-8").count('"type":"started"')
            row = {"started": started, **of_processes(driver)}
            row["/dev/shm, MB"] = size_mb(Path("/dev/shm"))
            row["study, MB"] = size_mb(run.root, "study.db")
            row["run directory, MB"] = size_mb(run.root)
            rows.append(row)
            print(json.dumps(row), file=lines)
    expected = 0 if time.monotonic() < end else InterruptedSearch.exit_code
    assert driver.returncode == expected, (folder / "out.txt").read_text(encoding="utf-8")[-2000:]
    return rows


def table(rows: list[Row]) -> str:
    last = max(row["started"] for row in rows)
    edges = np.linspace(0, last, 11)

    def of(name: str, low: float, high: float) -> float:
        key = name.removesuffix(" at most")
        chosen = [row[key] for row in rows if key in row and low <= row["started"] < high]
        how = np.max if key != name else np.min if name in MEMORY else np.mean
        return float(how(chosen)) if chosen else float("nan")

    heads = [f"{edge:.0f}" for edge in edges[1:]]
    lines = [f"| started | {' | '.join(heads)} | change |", "|---" * (len(heads) + 2) + "|"]
    names = [name for name in rows[len(rows) // 2] if name != "started"]
    for name in ("driver, MB at most", *names):
        cells = [f"{of(name, low, high):.4g}" for low, high in pairwise(edges)]
        before, after = of(name, last / 3, 2 * last / 3), of(name, 2 * last / 3, last)
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * (after / before - 1):+.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trials, log = 30 if options.quick else options.trials, options.json or Path(os.devnull)
        print(table(soak(trials, Path(folder), options.hours, log)))


if __name__ == "__main__":
    main()
