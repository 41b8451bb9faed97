"""The token table of a `data` section: the one way to it for everything but a trial's worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mptune.data._table import TokenTable
from mptune.errors import InputError
from mptune.spec.schema import build


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
    try:
        folder = Path.cwd() if base is None else base.absolute()
        table: TokenTable = build("data", data).resolved(folder).prepare(cache)
    except (InputError, ValueError, OSError) as error:
        raise InputError(f"data: {error}") from error
    return table
