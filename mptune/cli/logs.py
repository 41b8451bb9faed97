"""What one trial of a search has told: its events and its traceback, or what a rank printed."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

from mptune import status
from mptune.cli import _arguments
from mptune.errors import InputError
from mptune.paths import RunDirectory, TrialDirectory

EXAMPLES = """\
examples:
  mptune logs runs/quickstart 3
  mptune logs runs/quickstart 3 --follow      # until the trial has ended
  mptune logs runs/quickstart 3 --rank 1      # what rank 1 printed, errors included
  mptune logs runs/quickstart 0 --compare     # a run of the comparison
"""

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("trial", type=int, metavar="TRIAL", help="the trial's number")
    parser.add_argument("--compare", action="store_true", help="a run of the comparison instead")
    parser.add_argument("--rank", type=int, metavar="R", help="what this rank printed instead")
    parser.add_argument("--follow", action="store_true", help="go on until the trial has ended")


def run(arguments: argparse.Namespace) -> int:
    wanted = _Wanted(
        _arguments.existing_run(arguments.run_dir),
        arguments.trial,
        "compare" if arguments.compare else "search",
        arguments.rank,
    )
    wanted.check(arguments.follow)
    offset, goes_on = 0, True
    while goes_on:
        goes_on = arguments.follow and wanted.goes_on()
        offset = _print_from(wanted.file, offset)
        if goes_on:
            time.sleep(POLL_S)
    if arguments.rank is None and wanted.trial.traceback.exists():
        print(wanted.trial.traceback.read_text(encoding="utf-8"), end="")
    return 0


@dataclass(frozen=True)
class _Wanted:
    """A trial, and what is wanted of it."""

    run: RunDirectory
    number: int
    folder: str
    rank: int | None
    since: float = field(default_factory=time.time)

    @property
    def trial(self) -> TrialDirectory:
        return self.run.trial(self.number, self.folder)

    @property
    def file(self) -> Path:
        return self.trial.events if self.rank is None else self.trial.log(self.rank)

    def check(self, follow: bool) -> None:
        """What is not there yet may come while the trial is waited for.

        Raises:
            InputError: there is no such trial, or it has no such rank; what there is is named.
        """
        if follow and self.goes_on():
            return
        if not self.trial.root.is_dir():
            raise InputError(
                f"{self.run.root}: trial {self.number} has not started{self._others()}"
            )
        if self.rank is not None and self.rank not in self.trial.ranks():
            ranks = ", ".join(map(str, self.trial.ranks()))
            there = f"there is output of ranks {ranks}" if ranks else "no rank kept its output"
            raise InputError(f"{self.trial.root}: no output of rank {self.rank}; {there}")

    def goes_on(self) -> bool:
        """Whether a living driver has the trial in flight, or has not said yet."""
        from mptune import study

        now = status.read(self.run)
        if not study.is_driven(self.run):
            return False
        if now is None or now.time < self.since:
            return self.trial.root.is_dir() or (now is not None and self._is_in(now))
        return self._is_in(now)

    def _is_in(self, now: status.Status) -> bool:
        stage = {"search": "search", "compare": "comparison"}[self.folder]
        return now.stage == stage and now.in_flight(self.number)

    def _others(self) -> str:
        folder = self.trial.root.parent
        known = sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit())
        return f"; there are trials {known[0]} to {known[-1]}" if known else "; none has"


def _print_from(path: Path, offset: int) -> int:
    """Print the whole lines after `offset`; returns where the next one begins."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")
    text = b"".join(whole[:2])
    print(text.decode("utf-8", errors="replace"), end="", flush=True)
    return offset + len(text)
