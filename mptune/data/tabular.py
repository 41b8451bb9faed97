"""Tables: a row is a sequence, a column a position; numbers are binned, categories are symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mptune.data import _sources
from mptune.data._bins import Categories
from mptune.data._frames import Frame
from mptune.data._rows import Fitted, RowModality


class Tabular(RowModality):
    """Rows of a table, D = the number of columns; missing values are not observed.

    A column is of numbers if most of its values are, unless `categorical` names it. Categories
    of fewer than `rare` training rows are pooled, and held-out categories that are new belong to
    that pool; without one they are not observed. A row is its own group unless `group` names a
    column.
    """

    kind: Literal["tabular"] = "tabular"
    columns: tuple[str, ...] = Field(min_length=1, description="columns to learn, in this order")
    categorical: tuple[str, ...] = Field(
        (), description="columns of categories even if they look like numbers"
    )
    rare: int = Field(
        10, ge=1, description="training rows that a category needs to be a symbol of its own"
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:

        unknown = [c for c in self.categorical if c not in self.columns]
        if unknown:
            raise ValueError(f"categorical names {unknown[0]!r}, which is not in columns")
        return self

    def words(self) -> str:
        return f"{_sources.short(self.source)}, {len(self.columns)} columns"

    @property
    def _names(self) -> Sequence[str]:
        return self.columns

    @property
    def _axes(self) -> dict[str, int]:
        return {"column": len(self.columns)}

    def _fit(self, frame: Frame, name: str, train_N: NDArray[Any]) -> Fitted:
        if name not in self.categorical and frame.numeric(name):
            return super()._fit(frame, name, train_N)
        values = frame.words(name)
        if not any(v is not None for v in values[np.flatnonzero(train_N)]):
            raise ValueError(
                f"{frame.files[0]}: column {name!r} has no value in the training rows; leave it out"
            )
        return Categories.fit(values[train_N], self.rare), values
