"""Rows of numbers and categories to token tables: what sensors, tables and images share.

Every row of the source gets a split: training, held out, or one of the domains. Columns are fitted
on training rows alone. A sequence is `window` rows of one split, `window` x C values.

Shape suffixes: _N rows of the source, _W sequences, _WT sequences x window, C columns,
_WTC sequences x window x columns, _WD the same with D = T C.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mptune.data import _frames, _sources
from mptune.data._bins import Bins, Categories
from mptune.data._frames import RECORDING, Frame
from mptune.data._records import OnError
from mptune.data._sources import Source
from mptune.data.base import Modality
from mptune.data.table import (
    Meta,
    Split,
    TokenTable,
    build_table,
    domain_file,
    table_key,
    write_meta,
    write_split,
)
from mptune.paths import write_json
from mptune.spec.schema import Section

IntArray = NDArray[np.int64]
Values = str | int | float | list[str | int | float]

TRAIN, HELDOUT, DOMAIN = 0, 1, 2
"""Split of a row; domain i is DOMAIN + i."""

CODEC = "codec.json"
"""Beside the table: how its columns became symbols."""


class RowDomain(Section):
    """A held-out distribution of rows: chosen by their columns, or the held-out rows corrupted."""

    where: dict[str, Values] = Field(
        default_factory=dict,
        description="column -> value or values; these rows are neither trained on nor held out",
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="normal noise added to real values, in training standard "
        "deviations; of single values and categories this share is drawn at random",
    )
    missing: float = Field(0.0, ge=0, lt=1, description="share of the values made missing")

    @model_validator(mode="after")
    def _is_shifted(self) -> Self:
        if not (self.where or self.noise or self.missing):
            raise ValueError("needs where (rows), noise or missing (a corruption)")
        return self


@dataclass(frozen=True)
class Windows:
    """Sequences as rows of the source [W, T], -1 in gaps, and the split of each [W]."""

    rows_WT: IntArray
    split_W: IntArray

    def of(self, split: int) -> IntArray:
        chosen: IntArray = self.rows_WT[self.split_W == split]
        return chosen


class RowModality(Modality):
    """Base of the modalities whose source is rows with columns."""

    source: Source = Field(
        description="CSV, JSONL, Parquet or NumPy: file, folder, glob, URL, hf: or package:"
    )
    group: str | None = Field(
        None, description="column whose equal values stay in one split, e.g. a site or a subject"
    )
    time: str | None = Field(None, description="column with numbers or ISO dates")
    split: Literal["group", "time"] = Field(
        "group", description="hold out whole groups (without group: rows) by hash, or latest times"
    )
    heldout: float = Field(0.1, gt=0, lt=1, description="fraction of the groups or times held out")
    heldout_where: dict[str, Values] = Field(
        default_factory=dict, description="column -> value or values: hold out these rows instead"
    )
    domains: dict[str, RowDomain] = Field(
        default_factory=dict, description="held-out distributions that every trial is scored on"
    )
    bins: int = Field(32, ge=2, le=4096, description="symbols per column of numbers, 2 to 4096")
    units: Literal["standardised", "raw"] = Field(
        "standardised",
        description="densities per training standard deviation of a column, or per its own unit",
    )
    errors: OnError = Field(
        "stop", description="whether a broken row stops the preparation or is skipped, counted"
    )
    seed: int = Field(0, ge=0, description="of the split and of corruptions")

    @model_validator(mode="after")
    def _times_need_a_column(self) -> Self:
        if self.split == "time" and self.time is None:
            raise ValueError("split: time needs time, the column to go by")
        return self

    # What a modality says of itself.

    @abstractmethod
    def _names(self, frame: Frame) -> Sequence[str]:
        """The columns that become values, in order."""

    @abstractmethod
    def _axes(self, names: Sequence[str]) -> dict[str, int]:
        """Names and sizes of the grid of positions."""

    @property
    def _window(self) -> int:
        """Rows per sequence, T."""
        return 1

    @property
    def _stride(self) -> int:
        """Rows from one training sequence to the next."""
        return 1

    def frame(self, files: Sequence[_sources.File]) -> Frame:
        """The rows of these files, read as the source is."""
        return _frames.read(files, self.errors)

    def _fit(self, frame: Frame, name: str, train_N: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        """(the column's codec, its values [N])."""
        values = frame.numbers(name)
        known = values[train_N & ~np.isnan(values)]
        if not len(known):
            raise ValueError(
                f"{frame.files[0]}: column {name!r} has no value in the training rows; leave it out"
            )
        return Bins.fit(known, self.bins, self.units == "standardised"), values

    def _grid(self, frame: Frame, split_N: IntArray) -> Windows:
        """One row is one sequence."""
        kept = np.flatnonzero(split_N >= 0)
        return Windows(kept[:, None], split_N[kept])

    # What all of them share.

    def resolved(self, base: Path) -> Self:
        return self.model_copy(update={"source": _sources.absolute(self.source, base)})

    def check(self) -> None:
        _sources.check("source", self.source)

    def prepare(self, cache: Path) -> TokenTable:
        self.check()
        files = _sources.files("source", self.source)
        options = self.model_dump(mode="json", exclude={"source"})
        path = cache / table_key(options, [(f.name, f.digest()) for f in files])
        return build_table(path, lambda aside: self._write(aside, files))

    def cover(self, frame: Frame) -> IntArray:
        """Sequences [W, T] of new rows that together hold every row; -1 in gaps."""
        return np.arange(len(frame))[:, None]

    def _write(self, folder: Path, files: Sequence[_sources.File]) -> None:
        frame = self.frame(files)
        names = list(self._names(frame))
        split_N = self.splits(frame)
        fitted = [self._fit(frame, name, split_N == TRAIN) for name in names]
        columns, values = [c for c, _ in fitted], [v for _, v in fitted]
        windows = self._grid(frame, split_N)
        table = _Table(self, columns, values, self._groups(frame), windows)
        meta = table.write(folder, self._axes(names), frame)
        stored = {name: c.as_json() for name, c in zip(names, columns, strict=True)}
        write_json(folder / CODEC, {"columns": stored})
        write_meta(folder, meta)

    # Who is held out.

    def _labels(self, frame: Frame) -> NDArray[Any]:
        """The name of each row's group: that of `group`, else its recording, else its own."""
        if self.group is not None:
            return frame.column(self.group).astype(str)
        if RECORDING in frame.columns and len(np.unique(frame.columns[RECORDING])) > 1:
            return frame.columns[RECORDING].astype(str)
        return self._own_labels(frame)

    def _own_labels(self, frame: Frame) -> NDArray[Any]:
        """Groups of a source that names none: every row is one."""
        return np.arange(len(frame)).astype(str)

    def _groups(self, frame: Frame) -> IntArray:
        """The number of each row's group."""
        return np.unique(self._labels(frame), return_inverse=True)[1].astype(np.int64)

    def splits(self, frame: Frame) -> IntArray:
        """The split of each row [N]: TRAIN, HELDOUT, or DOMAIN + the number of a domain."""
        split_N = np.zeros(len(frame), np.int64)
        for number, (name, domain) in enumerate(self.domains.items()):
            if domain.where:
                chosen = _matching(frame, domain.where, f"domains.{name}.where")
                split_N[chosen & (split_N == TRAIN)] = DOMAIN + number
        home_N = split_N == TRAIN
        if self.heldout_where:
            held_N = _matching(frame, self.heldout_where, "heldout_where")
        elif self.split == "time":
            assert self.time is not None
            times = frame.times(self.time)
            held_N = times > np.nanquantile(times[home_N], 1 - self.heldout)
        else:
            held_N = self._held_groups(frame, home_N)
        split_N[held_N & home_N] = HELDOUT
        return split_N

    def _held_groups(self, frame: Frame, home_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The groups with the smallest hashes of the seed and their names."""
        names, number_N = np.unique(self._labels(frame), return_inverse=True)
        home = np.unique(number_N[home_N])
        if len(home) < 2:
            raise ValueError(
                f"{'source' if self.group is None else f'group: {self.group}'}: {len(home)} group "
                "beside the domains, of which none can be held out; give heldout_where, or time "
                "and split: time"
            )
        keys = [hashlib.sha256(f"{self.seed}/{names[g]}".encode()).hexdigest() for g in home]
        count = min(max(1, round(self.heldout * len(home))), len(home) - 1)
        return np.isin(number_N, home[np.argsort(keys)[:count]])


def _matching(frame: Frame, where: Mapping[str, Values], key: str) -> NDArray[np.bool_]:
    """Rows whose columns have one of the wanted values.

    Raises:
        ValueError: no row has; names the key and the values that there are.
    """
    chosen_N = np.ones(len(frame), bool)
    for name, wanted in where.items():
        listed = wanted if isinstance(wanted, list) else [wanted]
        words = frame.words(name)
        chosen_N &= np.isin(words.astype(str), [_frames._word(_as_number(w)) for w in listed])
    if not chosen_N.any():
        name = next(iter(where))
        there = sorted({str(w) for w in frame.words(name)})[:12]
        raise ValueError(
            f"{key}: no row of {frame.files[0]} has {json.dumps(dict(where))}; {name} has values "
            f"like {', '.join(there)}"
        )
    return chosen_N


def _as_number(value: str | int | float) -> Any:
    return float(value) if isinstance(value, int | float) else value


@dataclass
class _Table:
    """Values, their columns and windows, on the way to the files of a table."""

    data: RowModality
    columns: list[Bins | Categories]
    values: list[NDArray[Any]]
    group_N: IntArray
    windows: Windows

    def write(self, folder: Path, axes: dict[str, int], frame: Frame) -> Meta:
        """Write every split; the meta that describes them."""
        names = list(self.data.domains)
        train, heldout = self._split(TRAIN), self._split(HELDOUT)
        scored = {"heldout": heldout}
        for number, name in enumerate(names):
            scored[domain_file(name)] = self._domain(number, self.data.domains[name])
        self._refuse_too_little(train, scored)
        meta = self._meta(train, heldout, axes, frame)
        write_split(folder, "train", _without_widths(train), meta)
        for name, split in scored.items():
            write_split(folder, name, split, meta)
        return meta

    def _meta(self, train: Split, heldout: Split, axes: dict[str, int], frame: Frame) -> Meta:
        sizes = np.tile([c.size for c in self.columns], self.data._window)
        skipped = Counter(frame.skipped)
        binned = any(isinstance(c, Bins) and c.intervals for c in self.columns)
        widths = heldout.log_widths
        assert widths is not None
        source = _sources.shown(self.data.source)
        return Meta(
            vocabulary_size=int(sizes.max()),
            length=self.data.length,
            description=f"{source}: {len(train)} + {len(heldout)} sequences of "
            + " × ".join(f"{n} {name}" for name, n in axes.items())
            + (f", {skipped.total()} broken rows skipped" if skipped else ""),
            groups={
                name: len(np.unique(split.documents))
                for name, split in (("train", train), ("heldout", heldout))
            },
            log_bin_width=float(widths[heldout.observed].mean()) if binned else 0.0,
            axes=axes,
            sizes=tuple(int(n) for n in sizes),
            domains=tuple(self.data.domains),
            skipped=dict(skipped),
            unknown=self._unknown(),
        )

    def _unknown(self) -> dict[str, int]:
        """Values held out for which no training row gave a symbol, or only the pooled one."""
        rows = np.unique(self.windows.of(HELDOUT))
        rows = rows[rows >= 0]
        found: dict[str, int] = {}
        for values, column in zip(self.values, self.columns, strict=True):
            if isinstance(column, Categories):
                unseen = sum(v is not None and v not in column._number for v in values[rows])
            else:
                unseen = int(((column.symbols(values[rows]) < 0) & ~np.isnan(values[rows])).sum())
            if unseen:
                found[f"column {len(found)}"] = unseen
        return {"held-out values": sum(found.values())} if found else {}

    def _split(self, split: int, chosen: IntArray | None = None, **shift: float) -> Split:
        rows_WT = self.windows.of(split) if chosen is None else chosen
        return self._encode(rows_WT, **shift)

    def _domain(self, number: int, domain: RowDomain) -> Split:
        split = DOMAIN + number if domain.where else HELDOUT
        return self._split(split, noise=domain.noise, missing=domain.missing)

    def _encode(self, rows_WT: IntArray, noise: float = 0.0, missing: float = 0.0) -> Split:
        """Sequences of symbols [W, D] with their widths; those with nothing observed are left out.

        A repetition gives the same noise: it depends on the seed alone.
        """
        rng = np.random.default_rng([self.data.seed, 2])
        gap_WT = rows_WT < 0
        symbols, widths = [], []
        for values, column in zip(self.values, self.columns, strict=True):
            values_WT = values[rows_WT].copy()
            values_WT[gap_WT] = None if values.dtype.kind == "O" else np.nan
            values_WT = _shaken(values_WT, column, noise, rng) if noise else values_WT
            symbols.append(column.symbols(values_WT))
            widths.append(column.log_widths(values_WT))
        symbols_WD = np.stack(symbols, axis=-1).reshape(len(rows_WT), self.data.length)
        widths_WD = np.stack(widths, axis=-1).reshape(len(rows_WT), self.data.length)
        observed_WD = (symbols_WD >= 0) & (rng.random(symbols_WD.shape) >= missing)
        group_W = self.group_N[rows_WT.max(1)] if len(rows_WT) else np.zeros(0, np.int64)
        kept_W = observed_WD.any(1)
        return Split(
            np.maximum(symbols_WD, 0)[kept_W],
            observed_WD[kept_W],
            group_W[kept_W].astype(np.int32),
            np.where(observed_WD, widths_WD, 0).astype(np.float32)[kept_W],
        )

    def _refuse_too_little(self, train: Split, scored: Mapping[str, Split]) -> None:
        counts = {"training": (len(train), 1)}
        counts |= {name: (len(split), 2) for name, split in scored.items()}
        for name, (found, needed) in counts.items():
            if found < needed:
                words = "held-out" if name == "heldout" else name
                raise ValueError(
                    f"source: {found} {words} sequences of {_sources.shown(self.data.source)}; at "
                    f"least {needed} are needed"
                )


def _without_widths(split: Split) -> Split:
    return Split(split.tokens, split.observed, split.documents)


def _shaken(
    values_WT: NDArray[Any], column: Bins | Categories, noise: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Values with noise; missing ones stay missing."""
    if isinstance(column, Bins) and column.intervals:
        shaken: NDArray[Any] = values_WT + noise * column.scale * rng.normal(size=values_WT.shape)
        return shaken
    choices: Any = column.atoms if isinstance(column, Bins) else np.array(column.names, object)
    hit = rng.random(values_WT.shape) < min(noise, 1.0)
    drawn = rng.choice(choices, values_WT.shape)
    known = column.symbols(values_WT) >= 0
    return np.where(hit & known, drawn, values_WT)
