"""The token table: what every modality becomes, on disk and memory-mapped.

(A package, because every plain module of the folder above is a modality.)

Shape suffixes: _N sequences of a split, _ND sequences x positions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""Version of the files below; modalities put it into every table's hash."""


@dataclass(frozen=True)
class Split:
    """The sequences of one split.

    Attributes:
        tokens: ids, [N, D], of the smallest unsigned dtype; `pad_id` where not observed.
        observed: bool [N, D]; padding, specials and missing values are not observed, so they
            are never masked and never scored.
        documents: int32 [N], the number of the document (or group) a sequence comes from.
    """

    tokens: NDArray[Any]
    observed: NDArray[np.bool_]
    documents: NDArray[np.int32]

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
            position; log p minus this is a log density. 0 for symbols.
    """

    vocabulary_size: int
    length: int
    description: str
    groups: dict[str, int]
    bytes_per_token: float | None = None
    log_bin_width: float = 0.0

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

    @classmethod
    def open(cls, path: Path | str) -> TokenTable:
        """The table in the directory `path`.

        Raises:
            FileNotFoundError: there is no table.
        """
        path = Path(path)
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        return cls(**meta, path=path)


def store(path: Path, make: Callable[[], tuple[Meta, Split, Split]]) -> TokenTable:
    """The table at `path`, made by `make` (meta, train, held-out) unless it is there already.

    It is written aside and renamed, so that it appears whole or not at all; of processes that
    make it at the same time one wins, and all open the winner's.
    """
    if not (path / "meta.json").exists():
        with _directory_aside(path) as aside:
            _write(aside, *make())
    return TokenTable.open(path)


def row_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds all ids of a vocabulary.

    >>> row_dtype(254), row_dtype(255)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.min_scalar_type(vocabulary_size + 1))


@contextmanager
def _directory_aside(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path`, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
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


def _write(folder: Path, meta: Meta, train: Split, heldout: Split) -> None:
    dtype = row_dtype(meta.vocabulary_size)
    for name, split in (("train", train), ("heldout", heldout)):
        tokens_ND = np.where(split.observed, split.tokens.astype(dtype), dtype.type(meta.pad_id))
        np.save(folder / f"{name}_tokens.npy", tokens_ND)
        np.save(folder / f"{name}_observed.npy", split.observed)
        np.save(folder / f"{name}_documents.npy", split.documents)
    text = json.dumps(asdict(meta), indent=2, ensure_ascii=False)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def _open_split(path: Path, name: str) -> Split:
    return Split(*(np.load(path / f"{name}_{f.name}.npy", mmap_mode="r") for f in fields(Split)))
