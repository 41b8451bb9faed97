"""What a data modality is: an adapter from a source to a token table, and nothing else."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.data.table import TokenTable
from mptune.paths import write_json
from mptune.spec.schema import Section


class Modality(Section):
    """A source of sequences and how they become tokens.

    Models, policies, training and scoring see only the table that `prepare` gives. A subclass's
    docstring says in one line what it reads, and every field has a description with its range.
    """

    kind: str
    length: int = Field(128, ge=1, description="positions per sequence, D, at least 1")

    @abstractmethod
    def resolved(self, base: Path) -> Self:
        """The same with every path absolute; relative paths are relative to the folder `base`."""

    @abstractmethod
    def check(self) -> None:
        """Cheap checks before anything runs: the source is there. Reads no data.

        Raises:
            ValueError: one line, for the user.
        """

    @abstractmethod
    def prepare(self, cache: Path) -> TokenTable:
        """The token table in a directory below `cache`, made only if it is not there yet.

        Any number of processes may prepare the same table at once.

        Raises:
            ValueError: the source is missing or broken; one line that names the place.
            OSError: a file cannot be read.
        """

    def inspect(self, table: TokenTable) -> dict[str, Any]:
        """What the prepared table holds, as plain JSON with the keys of `mptune data inspect`."""
        from mptune.data._inspect import inspect

        return inspect(table)

    def warnings(self, table: TokenTable) -> tuple[str, ...]:
        """What in the prepared table would spoil the score; found once, then kept beside it."""
        kept = table.path / "warnings.json"
        if not kept.exists():
            write_json(kept, self.inspect(table)["warnings"])
        return tuple(json.loads(kept.read_text(encoding="utf-8")))

    def word_joins(self, ids: int) -> NDArray[np.bool_] | None:
        """For whole-word masks, bool [2, ids]: an id goes on with the word to its left, its right.

        None where the data has no words.
        """
        return None

    @abstractmethod
    def words(self) -> str:
        """The data in words for labels."""

    @classmethod
    @abstractmethod
    def examples(cls) -> list[Self]:
        """Parameters that work on any machine, for the conformance tests; may be empty."""
