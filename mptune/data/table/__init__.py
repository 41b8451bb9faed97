"""The token table: what every modality becomes, on disk and memory-mapped.

(A package, because every plain module of the folder above is a modality.)

Shape suffixes: _N sequences of a split, _ND sequences x positions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT = 2
"""Version of the files below; modalities put it into every table's hash."""


@dataclass(frozen=True)
class Split:
    """The sequences of one split.

    Attributes:
        tokens: ids, [N, D], of the smallest unsigned dtype; `pad_id` where not observed.
        observed: bool [N, D]; padding, specials and missing values are not observed, so they
            are never masked and never scored.
        documents: int32 [N], the number of the document (or group) a sequence comes from.
        log_widths: float32 [N, D], log bin width of each value in nats, where values are binned;
            log p minus this is a log density. None for symbols, and for training rows.
    """

    tokens: NDArray[Any]
    observed: NDArray[np.bool_]
    documents: NDArray[np.int32]
    log_widths: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says.

    Attributes:
        vocabulary_size: V, symbols that can be predicted, ids 0..V-1.
        length: D, positions per sequence.
        description: the data in one line of words.
        groups: documents per split.
        bytes_per_token: bytes of text per observed held-out position; None if it is not text.
        log_bin_width: mean log bin width of the observed held-out positions, in nats per
            position. 0 for symbols.
        axes: names and sizes of the grid that the positions lie on, slowest first, e.g.
            {"time": 24, "channel": 6}; their product is D. Empty where positions are a line.
        sizes: symbols that are possible at each position, [D] of at most V; empty if all are.
        domains: names of the held-out distributions that are scored beside `heldout`.
        domain_bytes: bytes of text per observed position of each domain, where it is text.
        skipped: what was left out of the source on the user's word, and how often.
        unknown: held-out symbols that no training sequence has, and how often each is met.
    """

    vocabulary_size: int
    length: int
    description: str
    groups: dict[str, int]
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
        {train,heldout}_{tokens,observed,documents}.npy    `Split`
        heldout_log_widths.npy                             of binned values only
        domain-NAME_*.npy                                  a split for each domain
        and what the modality keeps: codec.json, tokenizer.json

    No document has sequences in both splits.
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
    """The name of a table's directory: a hash of everything that its content depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store(path: Path, make: Callable[[], tuple[Meta, Split, Split]]) -> TokenTable:
    """The table at `path`, made in memory by `make` (meta, train, held-out) unless it is there."""

    def write(aside: Path) -> None:
        meta, train, heldout = make()
        write_split(aside, "train", train, meta)
        write_split(aside, "heldout", heldout, meta)
        write_meta(aside, meta)

    return build_table(path, write)


def build_table(path: Path, write: Callable[[Path], None]) -> TokenTable:
    """The table at `path`; unless it is there, `write` fills an empty directory that becomes it.

    It is written aside and renamed, so that it appears whole or not at all. Of processes on one
    machine that want it at the same time one makes it and the others wait; on several machines
    one wins. What a killed process has left half-written is removed by the next one.
    """
    if not (path / "meta.json").exists():
        with _one_at_a_time(path):
            if not (path / "meta.json").exists():
                _sweep(path)
                with _directory_aside(path) as aside:
                    write(aside)
    return TokenTable.open(path)


def row_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds all ids of a vocabulary.

    >>> row_dtype(254), row_dtype(255)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.min_scalar_type(vocabulary_size + 1))


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold this machine's lock of a table; the kernel lets go of it when its holder dies."""
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"mptune-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / name).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that no longer live have left of this table."""
    mark = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d+)\.")
    for aside in path.parent.glob(f".{path.name}.*"):
        found = mark.match(aside.name)
        if found and not _alive(int(found[1])):
            shutil.rmtree(aside, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _directory_aside(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path`, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{socket.gethostname()}.{os.getpid()}."
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
    try:
        yield aside
        aside.chmod(0o755)
        aside.rename(path)
    except OSError:
        # Renaming onto a directory that is not empty fails: then the table is there.
        if not (path / "meta.json").exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_meta(folder: Path, meta: Meta) -> None:
    """Write `meta.json`, after the splits."""
    text = json.dumps(asdict(meta), indent=2, ensure_ascii=False)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def write_split(folder: Path, name: str, split: Split, meta: Meta) -> None:
    """Write a split that is in memory."""
    with SplitWriter(folder, name, meta.length, meta.vocabulary_size) as writer:
        writer.append(split)


class SplitWriter:
    """Appends rows to a split on disk; of the rows only the ones at hand are in memory."""

    def __init__(self, folder: Path, name: str, length: int, vocabulary_size: int) -> None:
        self._folder, self._name, self._length = folder, name, length
        self._pad, self._dtype = vocabulary_size + 1, row_dtype(vocabulary_size)
        self._files: dict[str, _GrowingArray] = {}
        self.rows = 0

    def __enter__(self) -> SplitWriter:
        self.append(
            Split(
                np.zeros((0, self._length), self._dtype),
                np.zeros((0, self._length), bool),
                np.zeros(0, np.int32),
            )
        )
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, split: Split) -> None:
        """Rows to add at the end; ids of positions that are not observed do not matter."""
        tokens_ND = split.tokens.astype(self._dtype)
        self._to("tokens", np.where(split.observed, tokens_ND, self._dtype.type(self._pad)))
        self._to("observed", split.observed)
        self._to("documents", split.documents.astype(np.int32))
        if split.log_widths is not None:
            self._to("log_widths", split.log_widths.astype(np.float32))
        self.rows += len(split)

    def _to(self, part: str, values: NDArray[Any]) -> None:
        if part not in self._files:
            path = self._folder / f"{self._name}_{part}.npy"
            self._files[part] = _GrowingArray(path, values.dtype, values.shape[1:])
        self._files[part].append(values)


class _GrowingArray:
    """A `.npy` file whose number of rows is known when it is closed."""

    HEADER = 256

    def __init__(self, path: Path, dtype: np.dtype[Any], tail: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._tail, self._rows = dtype, tail, 0
        self._file.write(self._header())

    def _header(self) -> bytes:
        text = repr(
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._rows, *self._tail),
            }
        )
        magic = np.lib.format.magic(1, 0)
        size = self.HEADER - len(magic) - 2
        return magic + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._rows += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())
        self._file.close()


def drop_rows(folder: Path, name: str, kept: NDArray[np.int64], parts: Iterable[str]) -> None:
    """Keep only these rows (ascending) of a split that is being written, a piece at a time."""
    for part in parts:
        path = folder / f"{name}_{part}.npy"
        whole = np.load(path, mmap_mode="r")
        file = _GrowingArray(path.with_suffix(".part"), whole.dtype, whole.shape[1:])
        for start in range(0, len(kept), 4096):
            file.append(whole[kept[start : start + 4096]])
        file.close()
        path.with_suffix(".part").replace(path)


def _open_split(path: Path, name: str) -> Split:
    def opened(part: str) -> Any:
        return np.load(path / f"{name}_{part}.npy", mmap_mode="r")

    widths = path / f"{name}_log_widths.npy"
    return Split(
        opened("tokens"),
        opened("observed"),
        opened("documents"),
        opened("log_widths") if widths.exists() else None,
    )
