"""A data modality: an adapter from a source to a token table, and nothing else."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.data._table import Meta, Split, TokenTable, build_table, table_key, write_table
from mptune.paths import write_json
from mptune.spec.schema import Plugin

__all__ = ["Meta", "Modality", "Split", "TokenTable", "build_table", "table_key", "write_table"]


class Modality(Plugin):
    """A source of sequences and how they become tokens.

    Models, policies, training and scoring use only the table that `prepare` returns. A subclass's
    docstring describes in one line what it reads; every field has a description with its range.
    """

    kind: str
    length: int = Field(128, ge=1, description="positions per sequence, D, at least 1")

    @abstractmethod
    def resolved(self, base: Path) -> Self:
        """The same with every path absolute; relative paths are relative to the folder `base`."""

    @abstractmethod
    def check(self) -> None:
        """Cheap checks before anything runs: the source exists. Reads no data.

        Raises:
            ValueError: one line, for the user.
        """

    @abstractmethod
    def prepare(self, cache: Path) -> TokenTable:
        """The token table in a directory below `cache`, made unless it exists.

        Any number of processes may prepare the same table at once.

        Raises:
            ValueError: the source is missing or broken; one line that names the place.
            OSError: a file cannot be read.
        """

    def expected_symbols(self) -> int:
        """About how many symbols there will be, before the data are read."""
        return 256

    def inspect(self, table: TokenTable) -> dict[str, Any]:
        """A summary of the prepared table, as plain JSON with the keys of `mptune data inspect`."""
        from mptune.data._inspect import inspect

        return inspect(table)

    def warnings(self, table: TokenTable) -> tuple[str, ...]:
        """Problems of the prepared table that would spoil the score; found once, then stored."""
        kept = table.path / "warnings.json"
        if not kept.exists():
            write_json(kept, self.inspect(table)["warnings"])
        return tuple(json.loads(kept.read_text(encoding="utf-8")))

    def word_joins(self, ids: int) -> NDArray[np.bool_] | None:
        """For whole-word masks, bool [2, ids]: an id belongs to the word on its left, its right.

        None where the data has no words.
        """
        return None

    @abstractmethod
    def words(self) -> str:
        """The data as text for labels."""
