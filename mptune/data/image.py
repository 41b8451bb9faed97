"""Small images: pixels as tokens on a grid. Shape suffixes: _N images, _NP images x pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.data import _frames, _sources
from mptune.data._bins import Bins
from mptune.data._frames import Frame
from mptune.data._records import BrokenRecords
from mptune.data._sources import File
from mptune.data.rows import Fitted, RowModality

Side = Annotated[int, Field(ge=1)]


class Image(RowModality):
    """Images of one size, D = rows x columns of pixels, with their 2-D positions.

    NumPy [N, rows, columns] or [N, rows × columns], or rows of numbers (CSV) without a header.
    Pixels take the values that the training images have, at most `bins` of them.
    """

    kind: Literal["image"] = "image"
    shape: tuple[Side, Side] = Field(description="rows and columns of pixels")
    label: int | None = Field(
        None, description="column of a CSV that is not a pixel, -1: the last; domains call it label"
    )

    def words(self) -> str:
        rows, columns = self.shape
        return f"{_sources.short(self.source)}, {rows} × {columns} tokens"

    @property
    def _names(self) -> Sequence[str]:
        return [str(i) for i in range(self.length)]

    @property
    def _axes(self) -> dict[str, int]:
        return {"row": self.shape[0], "column": self.shape[1]}

    def frame(self, files: Sequence[File]) -> Frame:
        """One column per pixel, and one row per image."""
        parts = [self._pixels(f) for f in files]
        pixels_NP = np.concatenate([p for p, _ in parts])
        columns: dict[str, NDArray[Any]] = {"label": np.concatenate([label for _, label in parts])}
        return Frame(
            columns=columns | {str(i): pixels_NP[:, i] for i in range(self.length)},
            files=[f.place for f in files],
            file_N=np.repeat(np.arange(len(files), dtype=np.int32), [len(p) for p, _ in parts]),
            row_N=np.concatenate([np.arange(1, len(p) + 1) for p, _ in parts]),
            broken=BrokenRecords(self.errors),
        )

    def _pixels(self, file: File) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """(pixels [N, rows × columns], labels [N])."""
        held = _frames.load_arrays(file) if file.suffix in (".npy", ".npz") else _numbers(file)
        values = held["values"] if "values" in held else next(iter(held.values()))
        label = held.get("label", np.zeros(len(values)))
        values = values.reshape(len(values), -1).astype(np.float64)
        if self.label is not None:
            label, values = values[:, self.label], np.delete(values, self.label, axis=1)
        if values.shape[1] != self.shape[0] * self.shape[1]:
            raise ValueError(
                f"{file.place}: has {values.shape[1]} numbers per image, shape {list(self.shape)} "
                f"has {self.shape[0] * self.shape[1]}"
                + ("" if self.label is not None else "; name a label column with label: -1")
            )
        return values, label

    def _fit(self, frame: Frame, train_N: NDArray[np.bool_]) -> list[Fitted]:
        """All pixels share their symbols."""
        columns = [frame.numbers(name) for name in self._names]
        found = np.concatenate([values[train_N] for values in columns])
        known = found[~np.isnan(found)]
        levels = np.unique(known)
        if len(levels) <= self.bins:
            none = np.zeros(0)
            shared = Bins(none, none, levels, none, float(known.mean()), float(known.std()) or 1.0)
        else:
            shared = Bins.fit(known, self.bins, self.units == "standardised")
        return [(shared, values) for values in columns]


def _numbers(file: File) -> dict[str, NDArray[Any]]:
    """Rows of numbers without a header.

    Raises:
        ValueError: a row is ragged, or holds something else; names the file and the line.
    """
    rows: list[list[float]] = []
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            try:
                rows.append([float(v) for v in line.decode("utf-8").replace(",", " ").split()])
                if len(rows[-1]) != len(rows[0]):
                    raise ValueError(f"{len(rows[-1])} numbers, in the first line {len(rows[0])}")
            except ValueError as error:
                raise ValueError(f"{file.place}:{number}: {error}") from None
    if not rows:
        raise ValueError(f"{file.place}: holds no rows")
    return {"values": np.array(rows)}
