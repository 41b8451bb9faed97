"""Columns of CSV, JSONL, Parquet and NumPy files, in memory, with the file and row of each value.

Shape suffixes: _N rows of all files together.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
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
    """Values [n, C], [recordings, n, C] or a list of [n_i, C], and one label of each recording."""
    held = load_arrays(file)
    if key is None:
        key = next(iter(held))
    require(file.place, [key], held, "array")
    recordings = _recordings(file, held[key])
    lengths = [len(r) for r in recordings]
    values = np.concatenate(recordings)
    columns: dict[str, NDArray[Any]] = {
        (names[i] if i < len(names) else str(i)): values[:, i] for i in range(values.shape[1])
    }
    columns[RECORDING] = np.repeat(np.arange(len(recordings)), lengths)
    for name, labels in held.items():
        if name != key and len(labels) in (len(recordings), len(values)):
            each = lengths if len(labels) == len(recordings) else [1] * len(values)
            columns.setdefault(name, np.repeat(np.asarray(labels), each))
    return columns


def _recordings(file: File, values: Any) -> list[NDArray[Any]]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufb":
        if values.ndim == 2:
            return [values]
        if values.ndim == 3:
            return list(values)
        raise ValueError(f"{file.place}: has shape {list(values.shape)}; give [rows, channels]")
    recordings = [np.asarray(v) for v in values]
    widths = {v.shape[1:] for v in recordings}
    if len(widths) != 1 or any(v.ndim != 2 or v.dtype.kind not in "iufb" for v in recordings):
        raise ValueError(f"{file.place}: its recordings are not all [rows, channels] of numbers")
    return recordings


def load_arrays(file: File) -> dict[str, Any]:
    """The arrays of a `.npy` or `.npz` file by name; a lone one is named `values`.

    A `.npy` file of a pickled dictionary is read if it holds arrays, lists and text only.

    Raises:
        ValueError: it is not a NumPy file, or holds other objects.
    """
    with file.open() as stream:
        try:
            if file.suffix == ".npz":
                held = np.load(stream, allow_pickle=False)
                return {name: held[name] for name in held.files}
            np.lib.format.read_magic(stream)
            _, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype.kind == "O":
                return _pickled(stream)
            stream.seek(0)
            return {"values": np.load(stream, allow_pickle=False)}
        except (ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{file.place}: not a NumPy file of numbers: {message_of(error)}"
            ) from None


class _Dtype:
    """A dtype in a pickle. NumPy's own would take any state from the file, and crash on some."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>|=]?[?biufSUO]\d*", code):
            raise pickle.UnpicklingError(f"it holds values of type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def array(self, raw: Any, shape: Any, order: Any) -> NDArray[Any]:
        """The array of raw bytes, or of a list of objects."""
        if self.dtype.kind != "O":
            values = np.frombuffer(
                raw.encode("latin1") if isinstance(raw, str) else raw, self.dtype
            )
            return values.reshape(shape, order=order)
        values = np.empty(len(raw), object)
        for at, value in enumerate(raw):
            values[at] = _plain(value)
        return values.reshape(shape)  # NumPy lists objects in the order of C


class _Array:
    """An array in a pickle, see `_Dtype`."""

    def __init__(self, *_: Any) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.values = dtype.array(raw, shape, "F" if fortran else "C")


def _plain(value: Any) -> Any:
    """The value with arrays in place of what stands for them."""
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


_PICKLED: dict[str, Any] = {
    "_reconstruct": _Array,
    "ndarray": _Array,
    "_frombuffer": lambda raw, dtype, shape, order, *_: dtype.array(raw, shape, order),
    "dtype": _Dtype,
    "scalar": lambda dtype, raw: dtype.array(raw, (1,), "C")[0],
    "encode": lambda text, code: text.encode("latin1"),
    "bytes": lambda: b"",
    **{kind.__name__: kind for kind in (date, datetime, time, timedelta, timezone)},
}
"""What rebuilds a pickled array: nothing of NumPy's, and nothing that a file could choose.

Old protocols write bytes as text that is encoded, and no bytes as a call of `bytes`.
"""


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays, numbers, text and dates, and refuses everything else, as it may be code."""

    def find_class(self, module: str, name: str) -> Any:
        known = ("numpy", "_codecs", "datetime", "__builtin__", "builtins")
        if module.split(".")[0] not in known or name not in _PICKLED:
            raise pickle.UnpicklingError(f"it holds {module}.{name} objects, which are refused")
        return _PICKLED[name]


def _pickled(stream: Any) -> dict[str, Any]:
    try:
        held = _plain(_ArraysOnly(stream, encoding="latin1").load())
    except (TypeError, AttributeError, LookupError, MemoryError, RecursionError) as error:
        raise pickle.UnpicklingError(f"damaged: {message_of(error)}") from None
    if isinstance(held, np.ndarray) and held.ndim == 0:
        held = held.item()
    return held if isinstance(held, dict) else {"values": held}
