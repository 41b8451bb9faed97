"""Show the state of a search: trials by state, the best trial, running and waiting trials.

While the search runs, the command reads the status file in the run directory, which is at most a
second old, and not the storage. docs/monitoring.md describes the JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from mptune.cli import _arguments
from mptune.live import status
from mptune.report.formatting import about
from mptune.status import Status

MAX_ROWS = 20
"""Largest number of table rows; the JSON has all of them."""

EXAMPLES = """\
examples:
  mptune status runs/quickstart
  watch -n 5 mptune status runs/quickstart
  mptune status runs/quickstart --json | jq '.now.queue'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.search.run import Run

    found = Run.open(arguments.run_dir).status()
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for line in _lines(found):
        print(line)
    now = Status.model_validate(found["now"]) if found["now"] else None
    if now is not None and (not found["stale"] or now.running):
        _show(now, found["stale"])
    return 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['name']}: {'running' if found['running'] else 'not running'}"
    for stage in ("search", "comparison"):
        if found[stage] is not None:
            yield f"  {stage}: {_counts(found[stage])}"
    if best := found["best"]:
        yield (
            f"  best so far: trial {best['number']}, {best['label']}, "
            f"{best['nats_per_token']:.4f} nats/token"
        )
    spent = found["spent"]
    yield (
        f"  spent: {spent['worker_seconds']:.0f} worker-seconds, {spent['gpu_hours']:.3g} GPU-hours"
    )


def _show(now: Status, stale: bool) -> None:
    """Print the tables of the live view."""
    console = Console(highlight=False)
    if stale:
        age = about(now.age_s(time.time()))
        console.print(f"stale: last written {age} ago by {now.driver}:")
    if now.running:
        console.print(status.running_table(now.running))
    if now.gangs:
        console.print(status.gangs_table(now.gangs, MAX_ROWS))
    if now.queue:
        console.print(status.queue_table(now.queue, MAX_ROWS))
    texts = (status.spend_words(now.spend, now.forecast), status.end_words(now),
             status.limit_words(now))  # fmt: skip
    if now.metrics and not stale:
        console.print(f" metrics: {now.metrics}", soft_wrap=True)
    console.print(f" {now.stage}: {' · '.join(filter(None, texts))}", soft_wrap=True)


def _counts(states: dict[str, int]) -> str:
    done = sum(states.get(s, 0) for s in ("complete", "pruned", "fail"))
    parts = ", ".join(f"{n} {s}" for s, n in states.items() if s != "total")
    return f"{done} of {states['total']} trials" + (f" ({parts})" if parts else "")
