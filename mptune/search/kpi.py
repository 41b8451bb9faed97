"""The user's own function (KPI) on every finished trial: called once, its value stored."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mptune.artifacts import artifacts_of
from mptune.errors import InputError
from mptune.paths import RunDirectory, write_json
from mptune.search.kpi_function import measure
from mptune.spec.schema import Score
from mptune.trial import KpiValue, Trial

REQUIRED_FILE = "config.json"
"""The file of a weights folder that is written last: with it, the folder is complete."""


def check_importable(score: Score) -> None:
    """Check before any training that the package of the function can be found.

    Raises:
        InputError: it is neither on Python's path nor in the current folder.
    """
    if score.kpi is None:
        return
    package = score.kpi.partition(":")[0].partition(".")[0]
    sys.path.insert(0, str(Path.cwd()))
    try:
        exists = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        exists = False
    finally:
        sys.path.pop(0)
    if not exists:
        raise InputError(
            f"score.kpi: {score.kpi}: no package {package!r} in the current folder or on "
            "Python's path"
        )


def measure_all(
    run: RunDirectory, score: Score, trials: Sequence[Trial], say: Callable[[str], None]
) -> None:
    """Call the function on every finished trial without a stored value.

    A failure is stored like a value: the function is called again only after the file `kpi.json`
    in the trial's directory was deleted. Trials that copied another's result are skipped.
    """
    function = score.kpi
    if function is None:
        return
    for trial in trials:
        if trial.state != "COMPLETE" or trial.spec is None or trial.same_as is not None:
            continue
        if trial.result is None or stored(run, function, trial) is not None:
            continue
        files = run.trial(trial.number)
        kept = artifacts_of(files.root, trial.spec.artifacts)
        names = kept.inside(files.weights.name).children()
        if REQUIRED_FILE in names:
            with kept.fetched([f"{files.weights.name}/{name}" for name in names]) as folder:
                value = measure(function, folder / files.weights.name, score.kpi_timeout_s)
        else:
            value = KpiValue(value=None, error="its weights were not kept: training.keep_weights")
        write_json(files.kpi, {"kpi": function, **value.model_dump(mode="json")})
        shown = value.error if value.value is None else f"{value.value:.6g}"
        say(f"trial {trial.number} ({trial.label}): {function} {shown}")


def stored(run: RunDirectory, function: str, trial: Trial) -> KpiValue | None:
    """The stored value of the function for a trial; None before the first call."""
    try:
        found = json.loads(run.trial(trial.number).kpi.read_text(encoding="utf-8"))
        return KpiValue.model_validate(found) if found.pop("kpi") == function else None
    except (OSError, ValueError, KeyError):
        return None
