"""Commands that watch, explain or stop a search."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import get_args

from rich.console import Console

from mptune.cli._command import JSON, RUN_DIR, argument, command, flag, show
from mptune.live import status
from mptune.report.formatting import about
from mptune.status import Status
from mptune.trial import StageName, event_from_json

MAX_ROWS = 20
"""Largest number of table rows; the JSON has all of them."""

POLL_S = 0.5


@command(RUN_DIR, JSON)
def run_status(run_dir: Path, as_json: bool) -> None:
    """Show the state of a search: trials by state, the best trial, running and waiting trials.

    While the search runs, the command reads the status file in the run directory, which is at most
    a second old, and not the storage. docs/monitoring.md describes the JSON.

    examples:
      mptune status runs/quickstart
      watch -n 5 mptune status runs/quickstart
      mptune status runs/quickstart --json | jq '.now.queue'
    """
    from mptune.search.run import Run

    found = Run.open(run_dir).status()
    show(found, as_json, "status")
    now = Status.model_validate(found["now"]) if found["now"] and not as_json else None
    if now is not None and (not found["stale"] or now.running):
        console = Console(highlight=False)
        if found["stale"]:
            age = about(now.age_s(time.time()))
            console.print(f"stale: last written {age} ago by {now.driver}:")
        for table in (
            now.running and status.running_table(now.running, len(now.running) + 1),
            now.gangs and status.gangs_table(now.gangs, MAX_ROWS),
            now.queue and status.queue_table(now.queue, MAX_ROWS),
        ):
            if table:
                console.print(table)
        if now.metrics and not found["stale"]:
            console.print(f" metrics: {now.metrics}", soft_wrap=True)
        texts = (
            status.spend_words(now.spend, now.forecast),
            status.end_words(now),
            status.limit_words(now),
        )
        console.print(f" {now.stage}: {' · '.join(filter(None, texts))}", soft_wrap=True)


@command(RUN_DIR, flag("--now", "do not wait for checkpoints"))
def run_stop(run_dir: Path, now: bool) -> None:
    """Stop a running search from another terminal; the same search command resumes it.

    examples:
      mptune stop runs/quickstart          # running trials write a checkpoint first
      mptune stop runs/quickstart --now    # trials resume from their last checkpoint
    """
    from mptune.search.run import existing_directory, stop_driver

    stopped = stop_driver(existing_directory(run_dir), now)
    print(
        f"{run_dir}: {'stopped; the same search command resumes it' if stopped else 'not running'}"
    )


@command(
    RUN_DIR,
    argument("trial", type=int, metavar="TRIAL", help="the trial's number"),
    argument(
        "--stage",
        choices=get_args(StageName),
        default="search",
        help="the stage of which TRIAL is a number; default search",
    ),
    argument("--rank", type=int, metavar="R", help="show the output of this rank instead"),
    flag("--follow", "follow the log until the trial has ended"),
    JSON,
)
def run_logs(
    run_dir: Path, trial: int, stage: StageName, rank: int | None, follow: bool, as_json: bool
) -> None:
    """Show the log of one trial: its events and traceback, or the output of one rank.

    examples:
      mptune logs runs/quickstart 3 --follow
      mptune logs runs/quickstart 3 --rank 1      # standard output and error of rank 1
      mptune logs runs/quickstart 0 --stage comparison
    """
    from mptune.search.run import existing_directory
    from mptune.search.trial_log import TrialLog

    log = TrialLog(existing_directory(run_dir), trial, stage, rank)
    log.check(follow)
    offset, active = 0, True
    while active:
        active = follow and log.is_active()
        offset = _print_from(log.file, offset, raw=as_json or rank is not None)
        if active:
            time.sleep(POLL_S)
    if rank is None and not as_json and log.trial.traceback.exists():
        print(log.trial.traceback.read_text(encoding="utf-8"), end="")


def _print_from(path: Path, offset: int, raw: bool) -> int:
    """Print the complete lines after `offset`, events in words; returns the next line's offset."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")
    text = b"".join(whole[:2])
    for line in text.decode("utf-8", errors="replace").split("\n")[:-1]:
        with suppress(ValueError):
            line = line if raw else status.event_words(event_from_json(line))
        print(line, flush=True)
    return offset + len(text)


@command(
    RUN_DIR,
    argument("trial", type=int, nargs="?", metavar="TRIAL", help="a trial's number; default all"),
    JSON,
)
def run_explain(run_dir: Path, trial: int | None, as_json: bool) -> None:
    """Tell why each trial of a search was asked for and what became of it, and why it ended.

    examples:
      mptune explain runs/quickstart
      mptune explain runs/quickstart 9     # everything about trial 9
      mptune explain runs/quickstart --json
    """
    from mptune.search.run import Run

    show(Run.open(run_dir).explain(trial).model_dump(mode="json"), as_json, "explain")
