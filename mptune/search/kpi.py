"""The user's own function (KPI) on every finished trial: called once, its value stored.

It gets the folder of a trained model, and returns a number, or a number and its standard error. It
runs in its own process, `python -m mptune.search.kpi FUNCTION FOLDER FILE`, so that its imports,
output, crashes and endless loops do not affect the search.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from threading import Event

from mptune.artifacts import store_at
from mptune.errors import InterruptedSearch, input_errors
from mptune.paths import RunDirectory, read_json, read_model, write_json, write_text
from mptune.plugins import require_package
from mptune.spec.schema import Score
from mptune.trial import KpiValue, Trial

POLL_S = 0.1

REQUIRED_FILE = "config.json"
"""The file of a weights folder that is written last: with it, the folder is complete."""


def check_importable(score: Score) -> None:
    """Check before any training that the package of the function can be found.

    Raises:
        InputError: it is neither on Python's path nor in the current folder.
    """
    if score.kpi is not None:
        with input_errors(f"score.kpi: {score.kpi}: "):
            require_package(score.kpi)


def measure_all(
    run: RunDirectory,
    score: Score,
    trials: Sequence[Trial],
    say: Callable[[str], None],
    interrupted: Event,
) -> None:
    """Call the function on every finished trial without a stored value.

    A failure is stored like a value: the function is called again only after the file `kpi.json`
    in the trial's directory was deleted. Trials that copied another's result are skipped.

    Raises:
        InterruptedSearch: `interrupted` was set, before or while the function ran.
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
        kept = store_at(trial.spec.artifacts or files.root)
        names = kept.inside(files.weights.name).children()
        if REQUIRED_FILE in names:
            with kept.fetched([f"{files.weights.name}/{name}" for name in names]) as folder:
                model = folder / files.weights.name
                value = measure(function, model, score.kpi_timeout_s, interrupted)
        else:
            why = trial.result.unkept or "training.keep_weights"
            value = KpiValue(value=None, error=f"its weights were not kept: {why}")
        write_json(files.kpi, {"kpi": function, **value.model_dump(mode="json")})
        shown = value.error if value.value is None else f"{value.value:.6g}"
        say(f"trial {trial.number} ({trial.label}): {function} {shown}")


def stored(run: RunDirectory, function: str, trial: Trial) -> KpiValue | None:
    """The stored value of the function for a trial; None before the first call."""
    try:
        found = read_json(run.trial(trial.number).kpi)
        return KpiValue.model_validate(found) if found.pop("kpi") == function else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def measure(
    function: str, model: Path, timeout_s: float, interrupted: Event | None = None
) -> KpiValue:
    """Call the user's function on one model folder, in its own process.

    Args:
        function: `package.module:name`; the current folder is on its path.
        model: the folder of a finished trial's weights.
        timeout_s: the process is killed after this time.
        interrupted: the process is killed when it is set.

    Returns:
        Its value, or the reason for its failure; a failure raises no exception here.

    Raises:
        InterruptedSearch: `interrupted` was set.
    """
    began, interrupted = time.monotonic(), interrupted or Event()
    with TemporaryDirectory() as folder:
        answer, errors = Path(folder) / "answer.json", Path(folder) / "errors.txt"
        arguments = [function, str(model.absolute()), str(answer)]
        command = [sys.executable, "-m", "mptune.search.kpi", *arguments]
        with errors.open("wb") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        try:
            while process.poll() is None:
                if interrupted.wait(POLL_S):
                    raise InterruptedSearch("interrupted")
                if time.monotonic() - began > timeout_s:
                    return KpiValue(value=None, error=f"took longer than {timeout_s:g} s")
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - began
        if (found := read_model(answer, KpiValue)) is not None:
            return found.model_copy(update={"seconds": seconds})
        last = errors.read_text(errors="replace").strip().splitlines()[-1:] or [
            "it printed no error"
        ]
    text = f"its process ended with {process.returncode}: {last[0]}"
    return KpiValue(value=None, error=_short(text), seconds=seconds)


def call(function: str, model: Path) -> KpiValue:
    """Call the user's function on one model folder, in this process."""
    module, _, name = function.partition(":")
    try:
        answer = getattr(importlib.import_module(module), name)(model)
        value, se = answer if isinstance(answer, tuple) else (answer, None)
        return _checked(float(value), None if se is None else float(se))
    except Exception as error:
        return KpiValue(value=None, error=_short(f"{type(error).__name__}: {error}"))


def _checked(value: float, se: float | None) -> KpiValue:
    if not math.isfinite(value):
        return KpiValue(value=None, error=f"its value is {value}")
    if se is not None and not (math.isfinite(se) and se >= 0):
        return KpiValue(value=None, error=f"its standard error is {se}")
    return KpiValue(value=value, se=se)


def _short(text: str) -> str:
    return shorten(text, width=200, placeholder=" ...")


if __name__ == "__main__":
    write_text(Path(sys.argv[3]), call(sys.argv[1], Path(sys.argv[2])).model_dump_json())
