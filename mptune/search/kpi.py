"""The team's own function on every finished trial: measured once, kept beside the trial."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mptune.analysis.kpi import measure
from mptune.artifacts import artifacts_of
from mptune.errors import InputError
from mptune.paths import RunDirectory, TrialDirectory, write_json
from mptune.spec.schema import Score
from mptune.trial import KpiValue, Trial

FEWEST = ("config.json",)
"""What a folder of kept weights has at least; it comes last."""


def check_importable(score: Score) -> None:
    """Before anything is trained for it: the function's package is there.

    Raises:
        InputError: it is not, on Python's path or in the current folder.
    """
    if score.kpi is None:
        return
    package = score.kpi.partition(":")[0].partition(".")[0]
    sys.path.insert(0, str(Path.cwd()))
    try:
        there = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        there = False
    finally:
        sys.path.pop(0)
    if not there:
        raise InputError(
            f"score.kpi: {score.kpi}: there is no package {package!r} in the current folder or on "
            "Python's path"
        )


def measure_all(
    run: RunDirectory, score: Score, found: Sequence[Trial], say: Callable[[str], None]
) -> None:
    """Measure every finished trial that has no value of this function yet.

    A value that could not be had (the function failed) is kept too, and not asked for again until
    its file, `kpi.json` in the trial's directory, is deleted.
    """
    if score.kpi is None:
        return
    for record in found:
        if not _is_finished(record) or stored(run, score.kpi, record) is not None:
            continue
        value = _measured(run, score, record)
        write_json(_file(run, record), {"kpi": score.kpi, **value.model_dump(mode="json")})
        shown = value.error if value.value is None else f"{value.value:.6g}"
        say(f"trial {record.number} ({record.label}): {score.kpi} {shown}")


def _measured(run: RunDirectory, score: Score, record: Trial) -> KpiValue:
    assert record.spec is not None
    assert score.kpi is not None
    files = _directory(run, record)
    kept = artifacts_of(files.root, record.spec.artifacts)
    names = kept.inside(files.weights.name).children()
    if not set(FEWEST) <= set(names):
        return KpiValue(value=None, error="its weights were not kept: training.keep_weights")
    with kept.fetched([f"{files.weights.name}/{name}" for name in names]) as folder:
        return measure(score.kpi, folder / files.weights.name, score.kpi_timeout_s)


def stored(run: RunDirectory, function: str, record: Trial) -> KpiValue | None:
    """What the function said of the trial; None if it was not asked yet."""
    try:
        text = _file(run, record).read_text(encoding="utf-8")
        said = json.loads(text)
        return KpiValue.model_validate(said) if said.pop("kpi") == function else None
    except (OSError, ValueError, KeyError):
        return None


def _is_finished(record: Trial) -> bool:
    """The same point counts once."""
    done = record.state == "COMPLETE" and record.result is not None and record.spec is not None
    return done and record.same_as is None


def _directory(run: RunDirectory, record: Trial) -> TrialDirectory:
    return run.trial(record.number)


def _file(run: RunDirectory, record: Trial) -> Path:
    return _directory(run, record).kpi
