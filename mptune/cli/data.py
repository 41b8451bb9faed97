"""The command that shows the data of a spec."""

from __future__ import annotations

from pathlib import Path

from mptune.cli._command import JSON, OVERRIDES, SPEC, argument, command, path, show
from mptune.spec.source import SpecFile


@command(
    argument("action", choices=["inspect"], metavar="inspect", help="the only action"),
    SPEC,
    OVERRIDES,
    path("--run-dir", "DIR", "a run with scores of this data; default runs/NAME"),
    JSON,
)
def run_data(
    action: str, spec: Path, overrides: list[str], run_dir: Path | None, as_json: bool
) -> None:
    """Prepare the data of a spec and describe it, before any training.

    Shows counts, lengths, vocabulary, missing values per channel, split sizes, duplicates across
    splits, a masked example, and warnings about problems that would distort the score.

    examples:
      mptune data inspect search_spaces/quickstart.yaml
      mptune data inspect spec.yaml --set data.length=256 --json
    """
    from mptune.search.preflight import inspect_data
    from mptune.search.run import Run

    file = SpecFile.read(spec, overrides)
    checked = file.validate()
    report = inspect_data(file, checked)
    folder = run_dir or Path("runs") / checked.name
    run = Run.open(folder) if run_dir or folder.is_dir() else None
    report["group_correlations"] = run.group_correlations(report["hash"]) if run else {}
    if run_dir and not report["group_correlations"]:
        report["warnings"].append(f"{folder} has no scores of this data")
    show(report, as_json, "data.txt")
