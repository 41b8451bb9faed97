"""Records of text in files, each with the file and row that an error names.

Formats by a file's name: `.jsonl`, `.ndjson`, `.parquet`, `.csv`, `.tsv`, FASTA (`.fasta`, `.fa`,
`.faa`, `.fna`), data sets of `datasets`; anything else is plain text. `.gz`, `.bz2`, `.xz` and
`.zst` are decompressed.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mptune.data._sources import DATASET, File, open_dataset
from mptune.errors import did_you_mean, message_of

Unit = Literal["file", "line", "paragraph"]
OnError = Literal["stop", "skip"]
Rows = Iterator[tuple[int, dict[str, Any]]]

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
"""Text, in any case, that means a missing value."""

FASTA = (".fasta", ".fa", ".faa", ".fna")

UNREADABLE = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""Raised by decompression if a file is cut short or broken."""

LONGEST_LINE = 2**30
"""Bytes of one line or CSV field; a longer one means that the file is something else."""


@dataclass(frozen=True)
class Record:
    """One text and its origin."""

    name: str
    """The same on every machine: it decides the record's split."""
    place: str
    """`file:row`, for errors."""
    content: bytes
    keys: tuple[Any, ...] = ()
    """Values of the extra columns."""

    @property
    def group(self) -> str:
        """Label of the record's group, its first extra column; without one, its own name."""
        return self.name if is_missing(self.keys[0]) else str(self.keys[0])


@dataclass
class BrokenRecords:
    """Call it with a broken record: it stops the preparation, or counts the record as skipped."""

    on_error: OnError = "stop"
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records."""

    def __call__(self, place: str, what: str) -> None:
        """Handle a broken record; the reason is `what` up to the first `;` or `: `.

        Raises:
            ValueError: unless broken records are skipped.
        """
        if self.on_error == "stop":
            raise ValueError(f"{place}: {what}")
        self.skipped[what.split(";")[0].split(": ")[0]] += 1


@dataclass
class Reader:
    """Reads the records of text files.

    Attributes:
        column: of the text in files with columns.
        extra: further columns to read.
        keeps: whether a record with these values of the extra columns is read; default all.
        unit: what a record of plain text is.
        broken: called with each broken record.
    """

    column: str = "text"
    extra: tuple[str, ...] = ()
    keeps: Callable[[Mapping[str, Any]], bool] | None = None
    unit: Unit = "file"
    broken: BrokenRecords = field(default_factory=BrokenRecords)

    def read(self, file: File) -> Iterator[Record]:
        """The records of one file.

        Raises:
            ValueError: something is broken; names the file and the row.
            OSError: the file cannot be read.
        """
        for record in self._all(file):
            if self.keeps is None or self.keeps(dict(zip(self.extra, record.keys, strict=True))):
                yield record

    def _all(self, file: File) -> Iterator[Record]:
        wanted, rows = (self.column, *self.extra), ROWS.get(file.suffix)
        try:
            if rows is not None:
                for row, values in rows(file, self.broken, wanted):
                    yield from self._record(file, row, values)
            elif file.suffix in FASTA:
                require(file.place, self.extra, ("file", "header"))
                yield from self._fasta(file)
            else:
                require(file.place, self.extra, ("file",))
                yield from self._text(file)
        except UNREADABLE as error:
            raise ValueError(f"{file.place}: cannot be read: {message_of(error)}") from None

    def _text(self, file: File) -> Iterator[Record]:
        keys = (file.name,) * len(self.extra)
        with file.open() as stream:
            if self.unit == "file":
                yield Record(file.name, file.place, stream.read(), keys)
                return
            parts = _lines(stream) if self.unit == "line" else _paragraphs(stream)
            for index, (row, content) in enumerate(parts):
                if self.unit == "line":
                    content = content.rstrip(b"\r\n")
                yield Record(f"{file.name}:{index}", f"{file.place}:{row}", content, keys)

    def _fasta(self, file: File) -> Iterator[Record]:
        with file.open() as stream:
            header, parts, first = "", list[bytes](), 0
            for row, line in _lines(stream):
                if line.startswith(b">"):
                    yield from self._sequence(file, header, parts, first)
                    header, parts, first = line[1:].decode("utf-8", "replace").strip(), [], row
                elif not first and line.strip():
                    raise ValueError(f"{file.place}:{row}: FASTA begins with a line '>NAME'")
                else:
                    parts.append(line.strip())
            yield from self._sequence(file, header, parts, first)

    def _sequence(
        self, file: File, header: str, parts: Sequence[bytes], row: int
    ) -> Iterator[Record]:
        if row and not b"".join(parts):
            self.broken(f"{file.place}:{row}", f"empty sequence; {header!r} has no residues")
        elif row:
            name = f"{file.name}:{header}"
            keys = tuple(header if key == "header" else file.name for key in self.extra)
            yield Record(name, f"{file.place}:{row}", b"".join(parts), keys)

    def _record(self, file: File, row: int, values: dict[str, Any]) -> Iterator[Record]:
        place = f"{file.place}:{row}"
        require(place, (self.column, *self.extra), values)
        text = values[self.column]
        if not isinstance(text, str):
            kind = "missing" if text is None else type(text).__name__
            self.broken(place, f"no text; column {self.column!r} is {kind}")
            return
        keys = tuple(values[name] for name in self.extra)
        yield Record(f"{file.name}:{row}", place, text.encode("utf-8", "surrogatepass"), keys)


def require(place: str, wanted: Sequence[str], known: Any, what: str = "column") -> None:
    """Check that all wanted names are known.

    Raises:
        ValueError: one is not; names the place and the known ones.
    """
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"{place}: no {what} {name!r}; there are {', '.join(map(str, known))}"
                f"{did_you_mean(name, known)}"
            )


def is_missing(value: Any) -> bool:
    """Whether a value of a column is missing."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def group_labels(values: Sequence[Any]) -> tuple[list[str], int]:
    """The label of each row's group, and how many rows have none: each is a group of its own."""
    missing = [is_missing(value) for value in values]
    pairs = zip(values, missing, strict=True)
    return [f"row {n}" if m else str(v) for n, (v, m) in enumerate(pairs)], sum(missing)


def held_out(names: NDArray[Any], share: float, seed: int) -> NDArray[np.int64]:
    """Numbers of the held-out groups: those with the smallest hashes of the seed and their names.

    At least one is held out, and one is left unless there is only one.
    """
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).hexdigest() for name in names]
    count = min(max(1, round(share * len(names))), max(1, len(names) - 1))
    return np.argsort(keys)[:count]


def without_group(count: int, what: str, column: str | None, window: int = 1) -> str:
    """A note for a table's description; empty where all have a group."""
    then = "each a group of its own" if window == 1 else "in no sequence"
    return f", {count} {what} without {column}, {then}" if count else ""


def number(value: Any) -> float:
    """The value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def seconds(value: Any) -> float:
    """A number, or the seconds of an ISO date, UTC unless it names a zone; NaN if it is neither."""
    if not math.isnan(at := number(value)):
        return at
    try:
        date = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    """(line number, line with its newline)."""
    return enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1)


def _paragraphs(stream: Any) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, lines up to an empty one)."""
    parts, first = list[bytes](), 1
    for row, line in _lines(stream):
        if line == b"\n":
            yield first, b"".join(parts)
            parts, first = [], row + 1
        else:
            parts.append(line)
    yield first, b"".join(parts)


# --- rows with columns: (row or line number, column -> value) ------------------------------------


def json_rows(file: File, broken: BrokenRecords, wanted: Sequence[str]) -> Rows:
    """Every line that holds a JSON object, with all its keys; others are `broken`."""
    with file.open() as stream:
        for row, line in _lines(stream):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                broken(f"{file.place}:{row}", f"not JSON: {message_of(error)}")
                continue
            if isinstance(values, dict):
                yield row, values
            else:
                broken(f"{file.place}:{row}", "is not a JSON object")


def csv_rows(file: File, broken: BrokenRecords, wanted: Sequence[str]) -> Rows:
    """Every row after the header, with all columns.

    Raises:
        ValueError: no header, or not UTF-8; ragged rows go to `broken`.
    """
    csv.field_size_limit(LONGEST_LINE)
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, delimiter="\t" if file.suffix == ".tsv" else ",")
        try:
            header = next(rows, [])
            if not header:
                raise ValueError(f"{file.place}: is empty; a CSV file begins with column names")
            for fields in rows:
                if len(fields) == len(header):
                    yield rows.line_num, dict(zip(header, fields, strict=True))
                elif fields:
                    broken(
                        f"{file.place}:{rows.line_num}",
                        f"ragged row; it has {len(fields)} fields, the header has {len(header)}",
                    )
        except UnicodeDecodeError as error:
            at = f"{file.place}: after line {rows.line_num}"
            raise ValueError(f"{at}: byte {error.object[error.start]:#04x} is not UTF-8") from None
        except csv.Error as error:
            raise ValueError(f"{file.place}:{rows.line_num}: not CSV: {error}") from None


def parquet_rows(file: File, broken: BrokenRecords, wanted: Sequence[str]) -> Rows:
    """The wanted columns (all if none is named) of every row.

    Raises:
        ValueError: not Parquet, cut short, or a wanted column is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{file.place} needs `pip install mptune[datasets]`") from None
    with file.open() as stream:
        try:
            opened = parquet.ParquetFile(stream, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file.place}: not a Parquet file, or cut short: {message_of(error)}"
            ) from None
        require(file.place, wanted, opened.schema_arrow.names)
        try:
            batches = opened.iter_batches(1024, columns=list(wanted) or None, use_threads=False)
            yield from enumerate((values for b in batches for values in b.to_pylist()), start=1)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file.place}: broken inside: {message_of(error)}") from None


def dataset_rows(file: File, broken: BrokenRecords, wanted: Sequence[str]) -> Rows:
    """The wanted columns (all if none is named) of every row of a data set of `datasets`."""
    found = open_dataset(file.place)
    require(file.place, wanted, found.column_names)
    batches = found.select_columns(list(wanted) or found.column_names).with_format("arrow")
    yield from enumerate((v for b in batches.iter(1024) for v in b.to_pylist()), start=1)


ROWS: dict[str, Callable[[File, BrokenRecords, Sequence[str]], Rows]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    DATASET: dataset_rows,
}
"""Reader of each kind of file with columns."""
