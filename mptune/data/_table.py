"""The token table that every modality is prepared as: on disk and memory-mapped.

Shape suffixes: _N sequences of a split, _ND sequences x positions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mptune.errors import InputError

FORMAT = 5
"""Version of the files below; part of every table's hash."""


@dataclass(frozen=True)
class Split:
    """The sequences of one split.

    Attributes:
        tokens: ids, [N, D], of the smallest unsigned dtype; `pad_id` where not observed.
        observed: bool [N, D]; padding, specials and missing values are not observed, so they
            are never masked and never scored.
        groups: int32 [N], the number of the group (document, subject, site) of each sequence.
        log_widths: float32 [N, D], log bin width of each value in nats, where values are binned;
            log p minus this is a log density. None for symbols, and for training rows.
    """

    tokens: NDArray[Any]
    observed: NDArray[np.bool_]
    groups: NDArray[np.int32]
    log_widths: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def group_count(self) -> int:
        """The number of groups."""
        return len(np.unique(self.groups))

    def mean_log_width(self) -> float:
        """Mean log bin width of the observed positions; 0 where nothing is binned."""
        return 0.0 if self.log_widths is None else float(self.log_widths[self.observed].mean())


@dataclass(frozen=True)
class Meta:
    """The content of `meta.json`.

    Attributes:
        vocabulary_size: V, symbols that can be predicted, ids 0..V-1.
        length: D, positions per sequence.
        description: the data in one line of text.
        groups: their number per split.
        grouped_by: what a group is: `document`, `recording`, ..., or the name of a column.
        bytes_per_token: bytes of text per observed held-out position; None if it is not text.
        log_bin_width: mean log bin width of the observed held-out positions, in nats per
            position. 0 for symbols.
        axes: names and sizes of the grid that the positions lie on, slowest first, e.g.
            {"time": 24, "channel": 6}; their product is D. Empty where positions are a line.
        sizes: symbols that are possible at each position, [D] of at most V; empty if all are.
        domains: names of the held-out distributions that are scored besides `heldout`.
        domain_bytes: bytes of text per observed position of each domain, where it is text.
        skipped: reason -> number of broken records of the source that were left out.
        unknown: held-out symbols that no training sequence has, and the number of each.
    """

    vocabulary_size: int
    length: int
    description: str
    groups: dict[str, int]
    grouped_by: str
    bytes_per_token: float | None = None
    log_bin_width: float = 0.0
    axes: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()
    domain_bytes: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def mask_id(self) -> int:
        """Input id of [MASK]."""
        return self.vocabulary_size

    @property
    def pad_id(self) -> int:
        """Input id wherever a position is not observed."""
        return self.vocabulary_size + 1

    @property
    def total_vocabulary(self) -> int:
        """Input ids in all: the predictable symbols, [MASK] and padding."""
        return self.vocabulary_size + 2


@dataclass(frozen=True)
class TokenTable(Meta):
    """A table on disk, memory-mapped read-only.

    path/
        meta.json                                          `Meta`
        {train,heldout}_{tokens,observed,groups}.npy       `Split`
        heldout_log_widths.npy                             of binned values only
        domain-NAME_*.npy                                  a split for each domain
        train-NAME_*.npy                                   its documents that may be trained on
        codec.json, tokenizer.json, ...                    files of the modality

    No group has sequences in both splits, unless the user holds out rows by their time or columns.
    """

    path: Path = Path()

    @property
    def hash(self) -> str:
        """Content hash of the source and the options: the name of the directory."""
        return self.path.name

    @cached_property
    def train(self) -> Split:
        return _open_split(self.path, "train")

    @cached_property
    def heldout(self) -> Split:
        return _open_split(self.path, "heldout")

    def domain(self, name: str) -> Split:
        """One held-out distribution.

        Raises:
            KeyError: the table has no such domain.
        """
        if name not in self.domains:
            raise KeyError(name)
        return _open_split(self.path, domain_file(name))

    def mixed(self, name: str) -> Split:
        """The sequences of a domain that may be trained on, see `Training.mix`.

        Raises:
            FileNotFoundError: the table has none.
        """
        return _open_split(self.path, f"train-{name}")

    @classmethod
    def open(cls, path: Path | str) -> TokenTable:
        """The table in the directory `path`.

        Raises:
            FileNotFoundError: there is no table.
        """
        path = Path(path)
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        lists = {key: tuple(meta[key]) for key in ("sizes", "domains")}
        return cls(**{**meta, **lists}, path=path)


def domain_file(name: str) -> str:
    """The beginning of a domain's file names."""
    return f"domain-{name}"


def table_key(*parts: Any) -> str:
    """The name of a table's directory: a hash of all that determines its content."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_table(path: Path, write: Callable[[Path], None]) -> TokenTable:
    """The table at `path`; unless it is there, `write` fills an empty directory that becomes it.

    The table is written aside and renamed, so it appears whole or not at all. Processes of one
    machine wait for the one that makes it; of several machines, the first to finish wins. The files
    of a process that was killed are removed by the next one.
    """
    if (path / "meta.json").exists():
        return TokenTable.open(path)
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    locks = Path(tempfile.gettempdir()) / f"mptune-locks-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    if locks.lstat().st_uid != os.getuid():
        raise InputError(f"{locks}: belongs to another user, who made it for you; remove it")
    # The lock is held by one process of this user on this machine, so it alone writes there.
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getuid()}")
    with FileLock(locks / name):
        if not (path / "meta.json").exists():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                write(aside)
                aside.rename(path)
            except OSError:
                # Renaming onto a directory that is not empty fails: then the table is there.
                if not (path / "meta.json").exists():
                    raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return TokenTable.open(path)


def row_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds all ids of a vocabulary.

    >>> row_dtype(254), row_dtype(255)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.min_scalar_type(vocabulary_size + 1))


def write_meta(folder: Path, meta: Meta) -> None:
    """Write `meta.json`, after the splits."""
    text = json.dumps(asdict(meta), indent=2, ensure_ascii=False)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def write_table(folder: Path, splits: Mapping[str, Split], meta: Meta) -> None:
    """Write splits that are in memory, then `meta.json`."""
    for name, split in splits.items():
        with SplitWriter(folder, name, meta.length, meta.vocabulary_size) as writer:
            writer.append(split)
    write_meta(folder, meta)


class SplitWriter:
    """Appends rows to a split on disk; only the rows of one call are in memory."""

    def __init__(self, folder: Path, name: str, length: int, vocabulary_size: int) -> None:
        self._folder, self._name, self._length = folder, name, length
        self._pad, self._dtype = vocabulary_size + 1, row_dtype(vocabulary_size)
        self._files: dict[str, _GrowingArray] = {}
        self.rows = 0

    def __enter__(self) -> SplitWriter:
        none = np.zeros((0, self._length), bool)  # so that a split without rows has its files
        self.append(Split(none, none, np.zeros(0, np.int32)))
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, split: Split) -> None:
        """Add rows at the end; where not observed, ids become the id of padding."""
        tokens_ND = split.tokens.astype(self._dtype)
        self._to("tokens", np.where(split.observed, tokens_ND, self._dtype.type(self._pad)))
        self._to("observed", split.observed)
        self._to("groups", split.groups.astype(np.int32))
        if split.log_widths is not None:
            self._to("log_widths", split.log_widths.astype(np.float32))
        self.rows += len(split)

    def _to(self, part: str, values: NDArray[Any]) -> None:
        if part not in self._files:
            path = self._folder / f"{self._name}_{part}.npy"
            self._files[part] = _GrowingArray(path, values.dtype, values.shape[1:])
        self._files[part].append(values)


class _GrowingArray:
    """A `.npy` file to which rows are appended."""

    def __init__(self, path: Path, dtype: np.dtype[Any], tail: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._tail, self._rows = dtype, tail, 0
        self._write_header()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the number of rows to grow.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = (self._rows, *self._tail)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._rows += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


def drop_rows(folder: Path, name: str, kept: NDArray[np.int64], parts: Iterable[str]) -> None:
    """Keep only these rows (ascending) of a split that is being written."""
    for part in parts:
        path = folder / f"{name}_{part}.npy"
        whole = np.load(path, mmap_mode="r")
        file = _GrowingArray(path.with_suffix(".part"), whole.dtype, whole.shape[1:])
        for start in range(0, len(kept), 4096):
            file.append(whole[kept[start : start + 4096]])
        file.close()
        path.with_suffix(".part").replace(path)


def _open_split(path: Path, name: str) -> Split:
    files = {part: path / f"{name}_{part}.npy" for part in Split.__dataclass_fields__}
    if not files["log_widths"].exists():
        del files["log_widths"]
    return Split(**{part: np.load(file, mmap_mode="r") for part, file in files.items()})
