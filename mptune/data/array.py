"""Arrays of symbols.

Shape suffixes: _N sequences, _ND sequences x positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.artifacts import sha256
from mptune.data._records import group_labels, held_out, without_group
from mptune.data._table import Meta, Split, TokenTable, build_table, table_key, write_table
from mptune.data.base import Modality
from mptune.errors import did_you_mean


class Array(Modality):
    """A `.npy` file [N, D] of symbols, integers 0..V-1; negative: missing, and not observed.

    Every row is a sequence. Real values are read as `series` or `tabular`.
    """

    kind: Literal["array"] = "array"
    source: str = Field(min_length=1, description=".npy file of integers, [N, length]")
    group: str | None = Field(
        None,
        description=".npy file of N labels of subjects, sites, ...: rows with one label stay in "
        "one split, and errors are between labels. Default: single rows",
    )
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
        observed_ND = values_ND >= 0
        any_N = observed_ND.any(1)
        train, heldout = (
            Split(values_ND[rows_N], observed_ND[rows_N], groups_N[rows_N].astype(np.int32))
            for rows_N in (~heldout_N & any_N, heldout_N & any_N)
        )
        if len(heldout) < 2 or not len(train):
            raise ValueError(
                f"source: {len(train)} training and {len(heldout)} held-out rows; "
                "at least 1 and 2 are needed"
            )
        meta = Meta(
            vocabulary_size=int(values_ND.max()) + 1,
            length=self.length,
            description=f"{self.source}: {len(train)} + {len(heldout)} rows of {self.length}"
            + without_group(ungrouped, "rows", grouped_by),
            groups={"train": train.group_count(), "heldout": heldout.group_count()},
            grouped_by=grouped_by,
        )
        write_table(folder, {"train": train, "heldout": heldout}, meta)


def _open(file: tuple[str, str]) -> NDArray[Any]:
    """The array of a `.npy` file, memory-mapped: only its header is read here."""
    name, path = Path(file[1]).name, Path(file[1])
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{file[0]}: no such file: {path}{did_you_mean(name, siblings)}")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file[0]}: {path} is not a .npy array: {error}") from error
    if file[0] == "source" and values.dtype.kind not in "iu":
        what = "integers, or read it as series or tabular"
        raise ValueError(f"source: {path} holds {values.dtype}; give {what}")
    return np.asarray(values)
