"""Show the log of one trial: its events and its traceback, or what a rank printed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mptune.cli import _arguments

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
    from mptune.search.run import existing_directory
    from mptune.search.trial_log import TrialLog

    log = TrialLog(
        existing_directory(arguments.run_dir),
        arguments.trial,
        "comparison" if arguments.compare else "search",
        arguments.rank,
    )
    log.check(arguments.follow)
    offset, goes_on = 0, True
    while goes_on:
        goes_on = arguments.follow and log.goes_on()
        offset = _print_from(log.file, offset)
        if goes_on:
            time.sleep(POLL_S)
    if arguments.rank is None and log.trial.traceback.exists():
        print(log.trial.traceback.read_text(encoding="utf-8"), end="")
    return 0


def _print_from(path: Path, offset: int) -> int:
    """Print the complete lines after `offset`; returns where the next one begins."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")
    text = b"".join(whole[:2])
    print(text.decode("utf-8", errors="replace"), end="", flush=True)
    return offset + len(text)
