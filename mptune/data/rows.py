"""Rows of numbers and categories to token tables: the base of series and images, and tables.

Every row of the source belongs to a split: training, held out, or one of the domains. Columns are
fitted on training rows alone. A sequence is `window` rows of one split, `window` x C values.

Shape suffixes: _N rows of the source, _W sequences, _WT sequences x window, C columns,
_WTC sequences x window x columns, _WD the same with D = T C.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mptune.data import _frames, _sources
from mptune.data._bins import Bins, Categories, is_known
from mptune.data._frames import RECORDING, Frame, Values, wanted_words
from mptune.data._records import OnError, group_labels, held_out, without_group
from mptune.data._sources import Source
from mptune.data._table import (
    Meta,
    Split,
    TokenTable,
    build_table,
    domain_file,
    table_key,
    write_table,
)
from mptune.data.base import Modality
from mptune.errors import plural
from mptune.paths import write_json
from mptune.spec.schema import Section

IntArray = NDArray[np.int64]
Fitted = tuple[Bins | Categories, NDArray[Any]]
"""A column's codec, and its values [N]."""

TRAIN, HELDOUT, DOMAIN = 0, 1, 2
"""Split of a row; domain i is DOMAIN + i."""


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


class RowModality(Modality):
    """Base of the modalities whose source is rows with columns."""

    length: int = Field(
        0, ge=0, description="positions per sequence; leave it out: the other keys determine it"
    )
    source: Source = Field(
        description="CSV, JSONL, Parquet or NumPy: file, folder, glob, URL, hf: or package:"
    )
    group: str | None = Field(
        None,
        description="column of sites, subjects, ...: rows with one value stay in one split (unless "
        "times or heldout_where divide them), and errors are between values. Default: recordings, "
        "stretches of a series, or single rows",
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

    @model_validator(mode="after")
    def _fill_length(self) -> Self:
        positions = math.prod(self._axes.values())
        if self.length not in (0, positions):
            grid = " × ".join(f"{n} ({name})" for name, n in self._axes.items())
            raise ValueError(f"length {self.length} is not {grid}; leave it out")
        self.__dict__["length"] = positions
        return self

    # Defined by each modality.

    @property
    @abstractmethod
    def _names(self) -> Sequence[str]:
        """The columns that become values, in order."""

    @property
    @abstractmethod
    def _axes(self) -> dict[str, int]:
        """Names and sizes of the grid of positions."""

    @property
    def _window(self) -> int:
        """Rows per sequence, T."""
        return 1

    def frame(self, files: Sequence[_sources.File]) -> Frame:
        """The rows of these files, read as the source is."""
        return _frames.read(files, self.errors)

    def _values(self, frame: Frame, name: str) -> NDArray[Any]:
        """A column [N]: numbers with NaN, or categories with None, where missing."""
        return frame.numbers(name)

    def _codec(self, known: NDArray[Any]) -> Bins | Categories:
        """The symbols of a column with these training values."""
        return Bins.fit(known, self.bins, self.units == "standardised")

    def _fit(self, frame: Frame, train_N: NDArray[np.bool_]) -> list[Fitted]:
        """Each column with the codec that is fitted on its training values."""
        fitted = []
        for name in self._names:
            values = self._values(frame, name)
            known = values[train_N & is_known(values)]
            if not len(known):
                raise ValueError(
                    f"{frame.files[0]}: column {name!r} has no value in the training rows; "
                    "leave it out"
                )
            fitted.append((self._codec(known), values))
        return fitted

    def _grid(self, frame: Frame, split_N: IntArray) -> tuple[IntArray, IntArray]:
        """Sequences as rows of the source [W, T], -1 in gaps, and the split of each [W].

        Here one row is one sequence.
        """
        return np.arange(len(frame))[:, None], split_N

    # The same for all modalities of rows.

    def resolved(self, base: Path) -> Self:
        return self.model_copy(update={"source": _sources.absolute(self.source, base)})

    def check(self) -> None:
        _sources.check("source", self.source)

    def expected_symbols(self) -> int:
        return self.bins

    def prepare(self, cache: Path) -> TokenTable:
        self.check()
        files = _sources.files("source", self.source)
        options = self.model_dump(mode="json", exclude={"source"})
        path = cache / table_key(options, [(f.name, f.digest()) for f in files])
        return build_table(path, lambda aside: self._write(aside, files))

    def cover(self, frame: Frame) -> IntArray:
        """Sequences [W, T] that together contain every row of a new source; -1 in gaps."""
        return np.arange(len(frame))[:, None]

    def _write(self, folder: Path, files: Sequence[_sources.File]) -> None:
        """Fit the columns on the training rows, then write every split and what describes it."""
        frame = self.frame(files)
        split_N = self.splits(frame)
        fitted = self._fit(frame, split_N == TRAIN)
        columns = [column for column, _ in fitted]
        rows_WT, split_W = self._grid(frame, split_N)
        # Groups are numbered in the order of their names.
        group_N = np.unique(self._labels(frame), return_inverse=True)[1].astype(np.int64)

        def encode(split: int, noise: float = 0.0, missing: float = 0.0) -> Split:
            return self._encode(rows_WT[split_W == split], fitted, group_N, noise, missing)

        train, heldout = replace(encode(TRAIN), log_widths=None), encode(HELDOUT)
        splits = {"train": train, "heldout": heldout}
        for number, (name, domain) in enumerate(self.domains.items()):
            rows = DOMAIN + number if domain.where else HELDOUT
            splits[domain_file(name)] = encode(rows, domain.noise, domain.missing)
        source = ", ".join(self.source)
        for name, split in splits.items():
            needed, what = (1, "training") if name == "train" else (2, name)
            if len(split) < needed:
                raise ValueError(
                    f"source: {len(split)} {'held-out' if what == 'heldout' else what} sequences "
                    f"of {source}; at least {needed} are needed"
                )

        sizes = np.tile([c.size for c in columns], self._window)
        axes, skipped = self._axes, frame.broken.skipped
        ungrouped = group_labels(frame.column(self.group).tolist())[1] if self.group else 0
        binned = any(isinstance(c, Bins) and c.intervals for c in columns)
        meta = Meta(
            vocabulary_size=int(sizes.max()),
            length=self.length,
            description=f"{source}: {len(train)} + {len(heldout)} sequences of "
            + " × ".join(plural(n, name) for name, n in axes.items())
            + without_group(ungrouped, "rows", self.group, self._window)
            + (f", {skipped.total()} broken rows skipped" if skipped else ""),
            groups={name: splits[name].group_count() for name in ("train", "heldout")},
            grouped_by=self._grouped_by(frame),
            log_bin_width=heldout.mean_log_width() if binned else 0.0,
            axes=axes,
            sizes=tuple(int(n) for n in sizes),
            domains=tuple(self.domains),
            skipped=dict(skipped),
            unknown=_unknown(np.unique(rows_WT[split_W == HELDOUT]), fitted),
        )
        stored = {name: c.as_json() for name, c in zip(self._names, columns, strict=True)}
        write_json(folder / "codec.json", {"columns": stored})
        write_table(folder, splits, meta)

    def _encode(
        self,
        rows_WT: IntArray,
        fitted: Sequence[Fitted],
        group_N: IntArray,
        noise: float,
        missing: float,
    ) -> Split:
        """Sequences of symbols [W, D] with their widths; those with nothing observed are left out.

        Noise and missing values depend on the seed alone, so they are the same in a repetition.
        """
        rng = np.random.default_rng([self.seed, 2])
        gap_WT = rows_WT < 0
        symbols, widths = [], []
        for column, values in fitted:
            values_WT = values[rows_WT].copy()
            values_WT[gap_WT] = None if values.dtype.kind == "O" else np.nan
            values_WT = _with_noise(values_WT, column, noise, rng) if noise else values_WT
            symbols.append(column.symbols(values_WT))
            widths.append(column.log_widths(values_WT))
        symbols_WD = np.stack(symbols, axis=-1).reshape(len(rows_WT), self.length)
        widths_WD = np.stack(widths, axis=-1).reshape(len(rows_WT), self.length)
        observed_WD = (symbols_WD >= 0) & (rng.random(symbols_WD.shape) >= missing)
        group_W = group_N[rows_WT.max(1)] if len(rows_WT) else np.zeros(0, np.int64)
        kept_W = observed_WD.any(1)
        return Split(
            np.maximum(symbols_WD, 0)[kept_W],
            observed_WD[kept_W],
            group_W[kept_W].astype(np.int32),
            np.where(observed_WD, widths_WD, 0).astype(np.float32)[kept_W],
        )

    # What is held out.

    def _labels(self, frame: Frame) -> NDArray[Any]:
        """The name of each row's group: in the column `group`, or its recording, or its own."""
        if self.group is not None:
            return np.array(group_labels(frame.column(self.group).tolist())[0])
        if self._grouped_by(frame) == "recording":
            return frame.columns[RECORDING].astype(str)
        return self._own_labels(frame)

    def _grouped_by(self, frame: Frame) -> str:
        """What `_labels` names."""
        recordings = frame.columns.get(RECORDING, ())
        several = len(np.unique(recordings)) > 1
        return self.group or ("recording" if several else self._own_group)

    _own_group: ClassVar[str] = "row"

    def _own_labels(self, frame: Frame) -> NDArray[Any]:
        """Groups of a source without a column of groups: every row is one."""
        return np.arange(len(frame)).astype(str)

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
                "outside the domains, so none can be held out; give heldout_where, or time and "
                "split: time"
            )
        return np.isin(number_N, home[held_out(names[home], self.heldout, self.seed)])


def _matching(frame: Frame, where: Mapping[str, Values], key: str) -> NDArray[np.bool_]:
    """Rows whose columns have one of the wanted values.

    Raises:
        ValueError: there is no such row; names the key and the column's values.
    """
    chosen_N = np.ones(len(frame), bool)
    for name, wanted in where.items():
        chosen_N &= np.isin(frame.words(name).astype(str), list(wanted_words(wanted)))
    if not chosen_N.any():
        name = next(iter(where))
        there = sorted({str(w) for w in frame.words(name)})[:12]
        raise ValueError(
            f"{key}: no row of {frame.files[0]} has {json.dumps(dict(where))}; {name} has values "
            f"like {', '.join(there)}"
        )
    return chosen_N


def _unknown(rows: IntArray, fitted: Sequence[Fitted]) -> dict[str, int]:
    """Number of held-out values without a symbol of their own in training."""
    rows, found = rows[rows >= 0], 0
    for column, values in fitted:
        known = values[rows][is_known(values[rows])]
        if isinstance(column, Categories):
            found += sum(v not in column.number for v in known)
        else:
            found += int((column.symbols(known) < 0).sum())
    return {"held-out values": found} if found else {}


def _with_noise(
    values_WT: NDArray[Any], column: Bins | Categories, noise: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Values with noise; missing ones stay missing."""
    if isinstance(column, Bins) and column.intervals:
        return values_WT + noise * column.scale * rng.normal(size=values_WT.shape)
    choices: Any = column.atoms if isinstance(column, Bins) else np.array(column.names, object)
    hit = rng.random(values_WT.shape) < min(noise, 1.0)
    drawn = rng.choice(choices, values_WT.shape)
    known = column.symbols(values_WT) >= 0
    return np.where(hit & known, drawn, values_WT)


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
        return f"{_sources.short(self.source)}, {plural(len(self.columns), 'column')}"

    @property
    def _names(self) -> Sequence[str]:
        return self.columns

    @property
    def _axes(self) -> dict[str, int]:
        return {"column": len(self.columns)}

    def _values(self, frame: Frame, name: str) -> NDArray[Any]:
        numeric = name not in self.categorical and frame.numeric(name)
        return frame.numbers(name) if numeric else frame.words(name)

    def _codec(self, known: NDArray[Any]) -> Bins | Categories:
        return Categories.fit(known, self.rare) if known.dtype == object else super()._codec(known)
