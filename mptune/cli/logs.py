"""What one trial of a search has told: its events, and the traceback of a failure."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mptune.cli import _arguments
from mptune.errors import InputError

EXAMPLES = """\
examples:
  mptune logs runs/quickstart 3
  mptune logs runs/quickstart 3 --follow
  mptune logs runs/quickstart 0 --compare     # a run of the comparison
"""

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("trial", type=int, metavar="TRIAL", help="the trial's number")
    parser.add_argument("--compare", action="store_true", help="a run of the comparison instead")
    parser.add_argument("--follow", action="store_true", help="go on while the search runs")


def run(arguments: argparse.Namespace) -> int:
    from mptune import study

    found = _arguments.existing_run(arguments.run_dir)
    trial = found.trial(arguments.trial, "compare" if arguments.compare else "search")
    if not trial.root.is_dir():
        raise InputError(f"{found.root}: trial {arguments.trial} has not started")
    offset, driven = 0, True
    while True:
        driven = arguments.follow and study.is_driven(found)
        offset = _print_from(trial.events, offset)
        if not driven:
            break
        time.sleep(POLL_S)
    if trial.traceback.exists():
        print(trial.traceback.read_text(encoding="utf-8"), end="")
    return 0


def _print_from(path: Path, offset: int) -> int:
    """Print the whole lines after `offset`; returns where the next one begins."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")
    text = b"".join(whole[:2])
    print(text.decode("utf-8"), end="", flush=True)
    return offset + len(text)
