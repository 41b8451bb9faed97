"""A `data` section that fits a file or a folder, from its names, columns and first rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mptune.data._frames import load_arrays
from mptune.data._records import (
    FASTA,
    ROWS,
    UNREADABLE,
    BrokenRecords,
    Reader,
    Unit,
    is_missing,
    number,
    seconds,
)
from mptune.data._sources import File, absolute, files
from mptune.errors import InputError, message_of, plural

MOST_ROWS = 200_000
"""Rows that are looked at: the first ones may all be of one group."""

MOST_DOCUMENTS, MOST_FILES = 5000, 200
"""Of text, that are looked at."""

LEAST_GROUPS = 30
"""Fewer documents of a kind leave too few to hold out."""

SHORTEST, LONGEST = 16, 256
"""Positions of a row of text, a multiple of the shortest; with more, most time is attention's."""

SUBWORDS_FROM = 20_000_000
"""Bytes of text, above which subwords can be learnt from it."""

FEW_SYMBOLS = 64
"""Text of no more different characters is of sequences (DNA, proteins, digits)."""

LONG_TEXT = 40
"""Mean characters of a column of text; categories are shorter."""

MOST_COLUMNS = 64

TIMES = ("time", "timestamp", "date", "datetime", "ts", "t", "step", "hour", "day")
CALENDAR = ("year", "month", "week", "day", "hour", "minute", "second")
"""Numbers that follow from the time."""

GROUPS = ("group", "subject", "patient", "user", "site", "station", "device", "sensor", "series")
TEXTS = ("text", "content", "sequence", "smiles", "document", "sentence", "body")

Found = tuple[dict[str, Any], list[str]]
"""A data section, and what cannot be told from the data, one line each."""


def propose(source: str) -> Found:
    """The data section for one entry of `data.source`, and what it may be wrong about.

    Raises:
        InputError: there is no such file, or what is in it is of no known kind.
    """
    (source,) = absolute([source], Path.cwd())
    try:
        found = files("--from", [source])
        kinds = {_kind(file) for file in found}
        if len(kinds) > 1:
            raise ValueError(
                f"--from: {source} has files of several kinds ({', '.join(sorted(kinds))}); give "
                "a glob of one kind, e.g. 'FOLDER/*.txt'"
            )
        proposed, unsure = {"numpy": _numpy, "rows": _rows, "text": _text}[kinds.pop()](found)
    except UNREADABLE as error:
        raise InputError(f"--from: {source}: cannot be read: {message_of(error)}") from None
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None
    return {"kind": proposed.pop("kind"), "source": source, **proposed}, unsure


def _kind(file: File) -> str:
    if file.suffix in (".npy", ".npz"):
        return "numpy"
    return "rows" if file.suffix in ROWS else "text"


# --- NumPy -------------------------------------------------------------------------------------


def _numpy(found: Sequence[File]) -> Found:
    held = load_arrays(found[0])
    name, values = next(iter(held.items()))
    shape = " × ".join(map(str, values.shape))
    if values.dtype.kind in "iu" and values.ndim == 2 and found[0].suffix == ".npy":
        line = f"whether integers [{shape}] are symbols; written as such, one sequence in a row"
        return {"kind": "array", "length": values.shape[1]}, [line]
    if values.dtype == np.uint8 and values.ndim == 3:
        line = f"whether bytes [{shape}] are images; written as such"
        return {"kind": "image", "shape": list(values.shape[1:]), "bins": 16}, [line]
    if values.dtype.kind not in "iufb" or values.ndim not in (2, 3):
        raise ValueError(
            f"--from: {found[0].place}: {name} is {values.dtype} of shape {list(values.shape)}; "
            "give numbers [steps, channels] or [recordings, steps, channels]"
        )
    unsure = [f"names of the {values.shape[-1]} channels"]
    if values.ndim == 2:
        unsure.append(f"whether [{shape}] is a series [steps, channels]; written as one")
    section = {"kind": "series", "channels": [f"c{i}" for i in range(values.shape[-1])]}
    section |= {"values": name} if len(held) > 1 else {}
    return section | {"window": _window(values.shape[-1], values.shape[-2])}, unsure


def _window(channels: int, steps: int) -> int:
    """Steps of a window: at most `LONGEST` positions, and enough windows in each series."""
    return max(2, min(24, LONGEST // channels, steps // 2))


# --- rows with columns -------------------------------------------------------------------------


def _rows(found: Sequence[File]) -> Found:
    read = ROWS[found[0].suffix](found[0], BrokenRecords(), ())
    rows = [values for _, values in islice(read, MOST_ROWS)]
    if not rows:
        raise ValueError(f"--from: {found[0].place}: holds no rows")
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    known = {n: [v for v in c if not is_missing(v)] for n, c in columns.items()}
    known = {n: values for n, values in known.items() if values}
    texts = [n for n, values in known.items() if _is_text(n, values)]
    if texts:
        column = min(texts, key=lambda n: (n.lower() not in TEXTS, -_mean_length(known[n])))
        contents = [str(v) for v in known[column][:MOST_DOCUMENTS]]
        section, unsure = _of_documents(contents, sum(f.size() for f in found))
        group = _group(known, len(rows))
        unsure += [] if group else ["which documents belong together (data.group)"]
        named = {"column": column} | ({"group": group} if group else {})
        return {"kind": "text", **named, **section}, unsure
    numbers = [n for n, values in known.items() if all(not math.isnan(number(v)) for v in values)]
    time = _time(known)
    group = _group(known, len(rows)) or (time and _series(columns, time))
    channels = [n for n in numbers if n not in (group, time) and n.lower() not in CALENDAR]
    if time is not None and channels:
        steps = len(rows) // (len(set(map(str, known[group]))) if group else 1)
        section = {"kind": "series", "channels": channels[:MOST_COLUMNS], "time": time}
        section |= {"group": group} if group else {}
        unsure = [] if group else ["whether there are several series (data.group)"]
        return section | {"window": _window(len(channels), steps)}, unsure
    names = [n for n in known if n != group and not _is_key(known[n], n in numbers)]
    if not names:
        raise ValueError(f"--from: {found[0].place}: has no column of numbers, categories or text")
    unsure = ["whether the order of rows has a meaning; written as a table, where it has none"]
    unsure += [] if group else ["which rows belong together (data.group)"]
    section = {"kind": "tabular", "columns": names[:MOST_COLUMNS]}
    return section | ({"group": group} if group else {}), unsure


def _mean_length(values: Sequence[Any]) -> float:
    return sum(len(str(v)) for v in values) / len(values)


def _is_text(name: str, values: Sequence[Any]) -> bool:
    words = all(isinstance(v, str) and math.isnan(number(v)) for v in values)
    return words and (_mean_length(values) > LONG_TEXT or name.lower() in TEXTS)


def _is_key(values: Sequence[Any], is_number: bool) -> bool:
    """Whether nearly every row has a word of its own, as an id has."""
    return not is_number and len(set(map(str, values))) > 0.9 * len(values)


def _group(known: dict[str, list[Any]], rows: int) -> str | None:
    """A column whose name says that it groups rows, and whose values come again."""

    def repeats(name: str) -> bool:
        return 2 <= len(set(map(str, known[name]))) <= rows // 2

    names = [n for n in known if n.lower().removesuffix("_id") in GROUPS and repeats(n)]
    return names[0] if names else None


def _series(columns: dict[str, list[Any]], time: str) -> str | None:
    """The first column of each of whose values every time comes once only, if times come again."""
    rows = len(columns[time])
    if len(set(map(str, columns[time]))) == rows:
        return None

    def divides(name: str) -> bool:
        values = list(map(str, columns[name]))
        once = len(set(zip(values, map(str, columns[time]), strict=True))) == rows
        return once and len(set(values)) <= rows // 2

    return next((name for name in columns if name != time and divides(name)), None)


def _time(known: dict[str, list[Any]]) -> str | None:
    """A column of ISO dates, or of numbers with the name of a time."""

    def is_time(name: str) -> bool:
        return all(not math.isnan(seconds(v)) for v in known[name])

    dates = [n for n, values in known.items() if all(math.isnan(number(v)) for v in values)]
    named = sorted((n for n in known if n.lower() in TIMES), key=lambda n: TIMES.index(n.lower()))
    return next(filter(is_time, [*dates, *named]), None)


# --- text --------------------------------------------------------------------------------------


def _text(found: Sequence[File]) -> Found:
    unit: Unit = "file"
    if found[0].suffix not in FASTA and len(found) < LEAST_GROUPS:
        counts = {unit: len(_contents(found, unit)) for unit in ("paragraph", "line")}
        unit = "paragraph" if counts["paragraph"] >= LEAST_GROUPS else "line"
    contents = _contents(found, unit)
    if not contents:
        raise ValueError(f"--from: {found[0].place}: holds no text")
    if any("\0" in text for text in contents):
        raise ValueError(
            f"--from: {found[0].place}: is no text, and its ending {found[0].suffix or 'none'!r} "
            "is of no format that mptune reads; see docs/data.md"
        )
    section, unsure = _of_documents(contents, sum(file.size() for file in found))
    if found[0].suffix not in FASTA:
        section["documents"] = unit
        unsure.append(f"which text is independent of other text; each {unit} is taken as such")
    return {"kind": "text", **section}, unsure


def _contents(found: Sequence[File], unit: Unit) -> list[str]:
    def records() -> Iterator[str]:
        for file in found[:MOST_FILES]:
            for record in Reader(unit=unit).read(file):
                yield record.content.decode("utf-8", errors="replace")

    return [text for text in islice(records(), MOST_DOCUMENTS) if text.strip()]


def _of_documents(contents: Sequence[str], size: int) -> Found:
    """Tokenizer and length for documents like these, in a source of `size` bytes."""
    symbols = set().union(*contents)
    tokenizer, per_token = "bytes", 1.0
    if len(symbols) <= FEW_SYMBOLS:
        tokenizer = "characters"
    elif size >= SUBWORDS_FROM:
        tokenizer, per_token = "bpe", 4.0
    lengths = [len(text.encode()) / per_token for text in contents]
    usual = float(np.quantile(lengths, 0.9))
    length = min(LONGEST, SHORTEST * max(1, math.ceil(usual / SHORTEST)))
    longer = sum(n > length for n in lengths) / len(lengths)
    unsure = [f"how much context matters: {longer:.0%} of {plural(len(contents), 'document')} are "
              f"longer than {length} tokens (data.length) and are cut into rows"]  # fmt: skip
    return {"tokenizer": tokenizer, "length": length}, unsure if longer > 0.1 else []
