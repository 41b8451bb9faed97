"""The token table of a `data` section: the one way to it for everything but a trial's worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mptune.data._table import TokenTable
from mptune.errors import InputError, input_errors
from mptune.paths import TrialDirectory
from mptune.spec.schema import build
from mptune.trial import TrialSpec


def prepare_table(data: dict[str, Any], cache: Path, base: Path | None = None) -> TokenTable:
    """Make the token table in a folder below `cache`, or open it if it is already there.

    Args:
        data: a spec's `data` section.
        cache: the folder of all prepared tables.
        base: the folder that relative paths in `data` start from; default the current one.

    Raises:
        InputError: the section is wrong, or the source is missing or broken; the message begins
            with `data: `.
    """
    with input_errors("data: ", InputError, ValueError, OSError):
        folder = Path.cwd() if base is None else base.absolute()
        return build("data", data).resolved(folder).prepare(cache)


def table_of_trial(files: TrialDirectory) -> tuple[TrialSpec, TokenTable]:
    """A trial and the token table that it was trained on.

    Raises:
        InputError: it is no trial's directory, or its prepared data are gone.
    """
    if not files.spec.exists():
        raise InputError(f"{files.root}: no trained weights in it; it is no trial's directory")
    trial = TrialSpec.model_validate_json(files.spec.read_text(encoding="utf-8"))
    try:
        return trial, TokenTable.open(trial.prepared.table)
    except OSError:
        raise InputError(
            f"{trial.prepared.table}: the prepared data are gone; run `mptune data inspect` on the "
            "spec to make them again"
        ) from None
