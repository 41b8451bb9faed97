"""Small images: pixels, or patches of a codebook, as tokens on a grid.

Shape suffixes: _NHW images x rows x columns of pixels, _NP images x patches, _KF codes x features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mptune.data import _frames, _sources
from mptune.data._bins import Bins
from mptune.data._frames import Frame
from mptune.data._records import BrokenRecords
from mptune.data._sources import File
from mptune.data.rows import TRAIN, Fitted, RowModality

ROUNDS = 20
"""Iterations of k-means; small codebooks have converged by then."""


class Image(RowModality):
    """Images of one size, D = rows x columns of pixels or patches, with their 2-D positions.

    NumPy [N, rows, columns] or [N, rows × columns], or rows of numbers (CSV) without a header.
    Pixels take the values that the training images have, at most `bins` of them. With `patch` a
    token is a square of pixels, the nearest of a codebook of `bins` patches that k-means (Lloyd
    1982) finds in the training images; the score is then that of the codes.
    """

    kind: Literal["image"] = "image"
    shape: tuple[int, int] = Field(description="rows and columns of pixels")
    patch: int = Field(1, ge=1, description="pixels along the side of a token; 1 is pixels")
    label: int | None = Field(
        None, description="column of a CSV that is not a pixel, -1: the last; domains call it label"
    )

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if any(side < 1 or side % self.patch for side in self.shape):
            raise ValueError(f"patch {self.patch} does not divide the shape {list(self.shape)}")
        return self

    def words(self) -> str:
        rows, columns = self._axes.values()
        return f"{_sources.short(self.source)}, {rows} × {columns} tokens"

    @property
    def _names(self) -> Sequence[str]:
        return [str(i) for i in range(self.length)]

    @property
    def _axes(self) -> dict[str, int]:
        return {"row": self.shape[0] // self.patch, "column": self.shape[1] // self.patch}

    def frame(self, files: Sequence[File]) -> Frame:
        """One column per token and one row per image."""
        parts = [self._pixels(f) for f in files]
        pixels_NF = np.concatenate([p for p, _ in parts])
        columns: dict[str, NDArray[Any]] = {"label": np.concatenate([label for _, label in parts])}
        frame = Frame(
            columns=columns,
            files=[f.place for f in files],
            file_N=np.repeat(np.arange(len(files), dtype=np.int32), [len(p) for p, _ in parts]),
            row_N=np.concatenate([np.arange(1, len(p) + 1) for p, _ in parts]),
            broken=BrokenRecords(self.errors),
        )
        tokens_NP = pixels_NF if self.patch == 1 else self._codes(frame, pixels_NF)
        columns |= {str(i): tokens_NP[:, i] for i in range(self.length)}
        return frame

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

    def _codes(self, frame: Frame, pixels_NF: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest code of every patch [N, P]; the codebook is that of the training images.

        k-means begins with distinct patches drawn at random. A code that loses its patches stays.
        """
        from scipy.cluster.vq import kmeans2, vq

        p, (rows, columns) = self.patch, self.shape
        grid = pixels_NF.reshape(-1, rows // p, p, columns // p, p).swapaxes(2, 3)
        patches = grid.reshape(len(pixels_NF), self.length, p * p)
        train = patches[self.splits(frame) == TRAIN].reshape(-1, p * p)
        distinct, rng = np.unique(train, axis=0), np.random.default_rng(self.seed)
        first = rng.choice(len(distinct), min(self.bins, len(distinct)), replace=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a code has no patches
            options = {"iter": ROUNDS, "minit": "matrix", "check_finite": False}
            book_KF = kmeans2(train, distinct[first], **options)[0]
        nearest, _ = vq(patches.reshape(-1, p * p), book_KF, check_finite=False)
        return np.asarray(nearest, np.float64).reshape(-1, self.length)

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
