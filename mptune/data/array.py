"""Arrays: discrete columns as they are, real ones in quantile bins.

Shape suffixes: _N sequences, _ND sequences x columns.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.artifacts import sha256
from mptune.data._bins import Bins
from mptune.data._records import group_labels, held_out, without_group
from mptune.data._table import Meta, Split, TokenTable, build_table, table_key, write_table
from mptune.data.base import Modality
from mptune.errors import did_you_mean


class Array(Modality):
    """A `.npy` file [N, D] of integers 0..V-1 (negative: missing) or of reals (NaN: missing).

    Every row is a sequence. Real columns are binned by quantiles of the training rows, and log bin
    widths are recorded, so that scores are densities in the columns' units; beyond the training
    range densities fall exponentially. Missing values are not observed.
    """

    kind: Literal["array"] = "array"
    source: str = Field(min_length=1, description=".npy file of integers or reals, [N, length]")
    group: str | None = Field(
        None,
        description=".npy file of N labels of subjects, sites, ...: rows with one label stay in "
        "one split, and errors are between labels. Default: single rows",
    )
    bins: int = Field(32, ge=2, le=4096, description="quantile bins per real column, 2 to 4096")
    heldout: float = Field(
        0.1, gt=0, lt=1, description="fraction of the groups (default: of the rows) held out"
    )
    seed: int = Field(0, ge=0, description="of the split")

    def resolved(self, base: Path) -> Self:
        return self.model_copy(update={k: str(base / Path(v).expanduser()) for k, v in self._files})

    def check(self) -> None:
        shape = _open(self._files[0]).shape
        if len(shape) != 2:
            raise ValueError(f"source: {self.source} has shape {list(shape)}; give [N, D]")
        if shape[1] != self.length:
            raise ValueError(
                f"length: is {self.length}, but {self.source} has {shape[1]} columns; "
                f"give length: {shape[1]}"
            )
        if self.group is not None and _open(self._files[1]).shape != shape[:1]:
            raise ValueError(f"group: {self.group} must hold one label for each of {shape[0]} rows")

    def prepare(self, cache: Path) -> TokenTable:
        self.check()
        options = self.model_dump(mode="json", exclude={"source", "group"})
        digests = [sha256(Path(path)) for _, path in self._files]
        return build_table(cache / table_key(options, digests), self._write)

    def words(self) -> str:
        return f"{Path(self.source).name}, D = {self.length}"

    @property
    def _files(self) -> list[tuple[str, str]]:
        files = (("source", self.source), ("group", self.group))
        return [(name, path) for name, path in files if path is not None]

    def _write(self, folder: Path) -> None:
        values_ND = _open(self._files[0])
        labels: Any = np.arange(len(values_ND))
        ungrouped, grouped_by = 0, "row"
        if self.group is not None:
            labels, ungrouped = group_labels(_open(self._files[1]).tolist())
            grouped_by = Path(self.group).stem
        names, groups_N = np.unique(labels, return_inverse=True)
        if self.group is not None and len(names) < 2:
            raise ValueError(f"group: {self.group} is one group, so none can be held out")
        heldout_N = np.isin(groups_N, held_out(names, self.heldout, self.seed))
        sizes: tuple[int, ...] = ()
        widths_ND: NDArray[np.float32] | None = None
        if values_ND.dtype.kind == "f":
            symbols_ND, observed_ND, widths_ND, sizes = self._bin(values_ND, ~heldout_N)
        else:
            symbols_ND, observed_ND = values_ND, values_ND >= 0
        any_N = observed_ND.any(1)
        train, heldout = (
            Split(symbols_ND[rows_N], observed_ND[rows_N], groups_N[rows_N].astype(np.int32))
            for rows_N in (~heldout_N & any_N, heldout_N & any_N)
        )
        if len(heldout) < 2 or not len(train):
            raise ValueError(
                f"source: {len(train)} training and {len(heldout)} held-out rows; "
                "at least 1 and 2 are needed"
            )
        if widths_ND is not None:
            heldout = replace(heldout, log_widths=widths_ND[heldout_N & any_N])
        meta = Meta(
            vocabulary_size=max(sizes) if sizes else int(values_ND.max()) + 1,
            length=self.length,
            description=f"{self.source}: {len(train)} + {len(heldout)} rows of {self.length}"
            + without_group(ungrouped, "rows", grouped_by),
            groups={"train": train.group_count(), "heldout": heldout.group_count()},
            grouped_by=grouped_by,
            log_bin_width=heldout.mean_log_width(),
            sizes=sizes,
        )
        write_table(folder, {"train": train, "heldout": heldout}, meta)

    def _bin(
        self, values_ND: NDArray[Any], train_N: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32], tuple[int, ...]]:
        """(symbols, observed, log bin widths), each [N, D], and the symbols of each column."""
        if np.isinf(values_ND).any():
            row, column = np.argwhere(np.isinf(values_ND))[0]
            raise ValueError(f"source: row {row}, column {column} of {self.source} is infinite")
        columns = [self._fit(values_ND[train_N, j], j) for j in range(values_ND.shape[1])]
        pairs = list(zip(columns, values_ND.T, strict=True))
        symbols_ND = np.stack([c.symbols(values) for c, values in pairs], axis=1)
        widths_ND = np.stack([c.log_widths(values) for c, values in pairs], axis=1)
        observed_ND = symbols_ND >= 0
        sizes = tuple(c.size for c in columns)
        return np.maximum(symbols_ND, 0), observed_ND, widths_ND.astype(np.float32), sizes

    def _fit(self, values: NDArray[Any], column: int) -> Bins:
        """The bins of a column; a density needs at least two values that differ."""
        known = values[~np.isnan(values)].astype(np.float64)
        if len(np.unique(known)) < 2:
            raise ValueError(
                f"source: column {column} of {self.source} has fewer than two distinct training "
                "values, so it has no density; leave it out"
            )
        return Bins.fit(known, self.bins)


def _open(file: tuple[str, str]) -> NDArray[Any]:
    """The array of a `.npy` file, memory-mapped: only its header is read here."""
    name, path = Path(file[1]).name, Path(file[1])
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{file[0]}: no such file: {path}{did_you_mean(name, siblings)}")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file[0]}: {path} is not a .npy array: {error}") from error
    if file[0] == "source" and values.dtype.kind not in "iuf":
        raise ValueError(f"source: {path} holds {values.dtype}; give integers or reals")
    return np.asarray(values)
