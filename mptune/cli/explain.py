"""The command that tells why a search did what it did."""

from __future__ import annotations

from pathlib import Path

from mptune.cli._command import JSON, RUN_DIR, argument, command, show


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

    show(Run.open(run_dir).explain(trial).model_dump(mode="json"), as_json, "explain.txt")
