"""Show the log of one trial: its events and traceback, or the output of one rank."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune logs runs/quickstart 3
  mptune logs runs/quickstart 3 --follow      # until the trial has ended
  mptune logs runs/quickstart 3 --rank 1      # standard output and error of rank 1
  mptune logs runs/quickstart 0 --compare     # a run of the comparison
"""

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("trial", type=int, metavar="TRIAL", help="the trial's number")
    parser.add_argument("--compare", action="store_true", help="TRIAL is a run of the comparison")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="show the output of this rank instead"
    )
    parser.add_argument(
        "--follow", action="store_true", help="follow the log until the trial has ended"
    )


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
    offset, active = 0, True
    while active:
        active = arguments.follow and log.is_active()
        offset = _print_from(log.file, offset)
        if active:
            time.sleep(POLL_S)
    if arguments.rank is None and log.trial.traceback.exists():
        print(log.trial.traceback.read_text(encoding="utf-8"), end="")
    return 0


def _print_from(path: Path, offset: int) -> int:
    """Print the complete lines after `offset`; returns the offset of the next line."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")
    text = b"".join(whole[:2])
    print(text.decode("utf-8", errors="replace"), end="", flush=True)
    return offset + len(text)
