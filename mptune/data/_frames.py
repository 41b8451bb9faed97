"""Columns of CSV, JSONL, Parquet and NumPy files, in memory, with the file and row of each value.

Shape suffixes: _N rows of all files together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.data._records import (
    ROWS,
    UNREADABLE,
    BrokenRecords,
    OnError,
    csv_rows,
    is_missing,
    number,
    require,
    seconds,
)
from mptune.data._sources import File
from mptune.errors import message_of

Values = str | int | float | list[str | int | float]
"""Value or values of a column, as a key `where` gives them."""

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")

MOSTLY = 0.5
"""A column of which more values than this are numbers is a column of numbers."""

RECORDING = "recording"
"""Column that numbers the recordings of a NumPy file."""


@dataclass
class Frame:
    """Columns [N] as they were read, and the file and row of each.

    Attributes:
        columns: float64 with NaN, or objects with None, where missing.
        broken: called with each broken row.
    """

    columns: dict[str, NDArray[Any]]
    files: list[str]
    file_N: NDArray[np.int32]
    row_N: NDArray[np.int64]
    broken: BrokenRecords

    def __len__(self) -> int:
        return len(self.row_N)

    def place(self, row: int | np.int64) -> str:
        """`file:row` of a row."""
        return f"{self.files[self.file_N[row]]}:{self.row_N[row]}"

    def column(self, name: str) -> NDArray[Any]:
        """A column as it was read.

        Raises:
            ValueError: there is none of that name.
        """
        require(self.files[0], [name], self.columns)
        return self.columns[name]

    def numeric(self, name: str) -> bool:
        """Whether a column holds numbers: most of its values are."""
        values = self.column(name)
        if values.dtype.kind in "iufb":
            return True
        known = [v for v in values.tolist() if not is_missing(v)]
        return sum(not math.isnan(number(v)) for v in known) > MOSTLY * len(known)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of numbers, NaN where missing.

        Raises:
            ValueError: a value is not a number, or infinite; names the file and the row.
        """
        values = self.column(name)
        if values.dtype.kind in "iufb":
            found = values.astype(np.float64)
        else:
            found = np.array([number(v) for v in values.tolist()], np.float64)
            missing = np.array([is_missing(v) for v in values.tolist()], bool)
            for row in np.flatnonzero(np.isnan(found) & ~missing):
                what = f"column {name!r}; {values[row]!r} is not a number"
                self.broken(self.place(row), f"{what}, and missing values are empty, NA or NaN")
        for row in np.flatnonzero(np.isinf(found)):
            self.broken(self.place(row), f"column {name!r}; the value is infinite")
            found[row] = np.nan
        return found

    def words(self, name: str) -> NDArray[Any]:
        """A column of categories as strings, None where missing."""
        return np.array([None if is_missing(v) else word(v) for v in self.column(name)], object)

    def times(self, name: str) -> NDArray[np.float64]:
        """A column of numbers or ISO dates as seconds.

        Raises:
            ValueError: a value is neither; names the file and the row.
        """
        values = self.column(name)
        found = np.array([seconds(v) for v in values.tolist()], np.float64)
        for row in np.flatnonzero(np.isnan(found)):
            what = f"column {name!r}; {values[row]!r} is not a time"
            self.broken(self.place(row), f"{what}, give numbers or ISO dates")
        return found


def word(value: Any) -> str:
    """The name of a category: equal numbers have one name, as 7500 and 7500.0; 007 is no number."""
    if isinstance(value, float):
        return f"{value:.15g}"
    text = str(value)
    return text.rstrip("0").rstrip(".") if _DECIMAL.fullmatch(text) else text


def wanted_words(values: Values) -> set[str]:
    """The names of these values."""
    listed = values if isinstance(values, list) else [values]
    return {word(float(v) if isinstance(v, int | float) else v) for v in listed}


# --- reading -----------------------------------------------------------------------------------


def read(
    files: Sequence[File],
    on_error: OnError = "stop",
    names: Sequence[str] = (),
    key: str | None = None,
) -> Frame:
    """All rows of all files, which must have the same columns.

    Args:
        files: CSV, TSV, JSONL, Parquet, `datasets` or NumPy.
        on_error: whether a broken row stops, or is skipped and counted.
        names: of the columns of a NumPy array, which has none itself.
        key: of the values in a NumPy file that holds several arrays.

    Raises:
        ValueError: a file is broken, or there is no row; names the file and the row.
        OSError: a file cannot be read.
    """
    broken = BrokenRecords(on_error)
    parts = [_read(f, broken, names, key) for f in files]
    first = parts[0][0]
    for file, (columns, _) in zip(files, parts, strict=True):
        if set(columns) != set(first):
            odd = sorted(set(columns) ^ set(first))
            raise ValueError(
                f"{file.place}: its columns differ from those of {files[0].place}: {odd}"
            )
    rows = [r for _, r in parts]
    frame = Frame(
        columns={n: np.concatenate([c[n] for c, _ in parts]) for n in first},
        files=[f.place for f in files],
        file_N=np.repeat(np.arange(len(files), dtype=np.int32), [len(r) for r in rows]),
        row_N=np.concatenate(rows),
        broken=broken,
    )
    if not len(frame):
        raise ValueError(f"{files[0].place}: holds no rows")
    return frame


def _read(
    file: File, broken: BrokenRecords, names: Sequence[str], key: str | None
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """(columns, row numbers) of one file."""
    try:
        if file.suffix in (".npy", ".npz"):
            columns = _numpy_columns(file, names, key)
            return columns, np.arange(1, len(next(iter(columns.values()))) + 1)
        numbers, cells = list[int](), dict[str, list[Any]]()
        for number, values in ROWS.get(file.suffix, csv_rows)(file, broken, ()):
            cells = cells or {name: [] for name in values}
            numbers.append(number)
            for name, cell in cells.items():
                cell.append(values.get(name))
    except UNREADABLE as error:
        raise ValueError(f"{file.place}: cannot be read: {message_of(error)}") from None
    if not numbers:
        raise ValueError(f"{file.place}: holds no rows")
    return {n: _objects(c) for n, c in cells.items()}, np.array(numbers, np.int64)


def is_csv(file: File) -> bool:
    """Whether a file of rows is read as CSV (or TSV): any of no other known format is."""
    numpy = file.suffix in (".npy", ".npz")
    return not numpy and ROWS.get(file.suffix, csv_rows) is csv_rows


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers as they are; anything else as objects."""
    if all(isinstance(v, int | float) for v in values):
        return np.array(values, np.float64)
    found = np.empty(len(values), object)
    found[:] = values
    return found


# --- NumPy -------------------------------------------------------------------------------------


def _numpy_columns(file: File, names: Sequence[str], key: str | None) -> dict[str, NDArray[Any]]:
    """Values [n, C] or [recordings, n, C] as columns, and labels of recordings or of rows."""
    held = load_arrays(file)
    if key is None:
        key = next(iter(held))
    require(file.place, [key], held, "array")
    values = held[key]
    if values.dtype.kind not in "iufb" or values.ndim not in (2, 3):
        raise ValueError(
            f"{file.place}: {key} is {values.dtype} of shape {list(values.shape)}; give numbers "
            "[rows, channels] or [recordings, rows, channels]"
        )
    recordings, rows = values.shape[:-2], int(np.prod(values.shape[:-1]))
    length = values.shape[-2]
    values = values.reshape(rows, -1)
    columns: dict[str, NDArray[Any]] = {
        (names[i] if i < len(names) else str(i)): values[:, i] for i in range(values.shape[1])
    }
    for name, labels in held.items():
        if name != key and len(labels) in (rows, *recordings):
            columns.setdefault(name, labels if len(labels) == rows else labels.repeat(length))
    columns.setdefault(RECORDING, np.arange(rows) // length)
    return columns


def load_arrays(file: File) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npy` or `.npz` file by name; a lone one is named `values`.

    Raises:
        ValueError: it is not a NumPy file, or holds pickled objects, which may be code.
    """
    with file.open() as stream:
        try:
            held = np.load(stream, allow_pickle=False)
            return dict(held) if file.suffix == ".npz" else {"values": held}
        except Exception:  # a header may name any size, a zip file raises many kinds of errors
            # numpy takes anything else for a pickle, and names the option that would run its code.
            raise ValueError(
                f"{file.place}: not a NumPy file of numbers; write it with numpy.save or "
                "numpy.savez, without objects"
            ) from None
