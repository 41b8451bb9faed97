"""The user's own function (score.kpi) on the folder of a trained model.

It returns a number, or a number and its standard error. It runs in its own process, `python -m
mptune.search.kpi_function FUNCTION FOLDER FILE`, so that its imports, output, crashes and endless
loops do not affect the search.
"""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

from mptune.trial import KpiValue


def measure(function: str, model: Path, timeout_s: float) -> KpiValue:
    """Call the user's function on one model folder, in its own process.

    Args:
        function: `package.module:name`; the current folder is on its path.
        model: the folder of a finished trial's weights.
        timeout_s: the process is killed after this time.

    Returns:
        Its value, or the reason for its failure; a failure raises no exception here.
    """
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        arguments = [function, str(model.absolute()), str(answer)]
        command = [sys.executable, "-m", "mptune.search.kpi_function", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return KpiValue(value=None, error=f"took longer than {timeout_s:g} s")
        seconds = time.monotonic() - began
        if answer.exists():
            found = KpiValue.model_validate_json(answer.read_text(encoding="utf-8"))
            return found.model_copy(update={"seconds": seconds})
    last = done.stderr.strip().splitlines()[-1:] or ["it printed no error"]
    text = f"its process ended with {done.returncode}: {last[0]}"
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
    Path(sys.argv[3]).write_text(
        json.dumps(call(sys.argv[1], Path(sys.argv[2])).model_dump()), encoding="utf-8"
    )
