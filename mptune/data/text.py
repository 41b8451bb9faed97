"""Text files as byte or character sequences.

Shape suffixes: _N rows of a split, _ND rows x positions.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, WithJsonSchema

from mptune.data.base import Modality
from mptune.data.table import FORMAT, Meta, Split, TokenTable, row_dtype, store
from mptune.errors import did_you_mean

STDLIB = "python-stdlib"

_NOT_SOURCE = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})

Codes = NDArray[np.unsignedinteger]


def _as_tuple(value: object) -> object:
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value):
        return value
    raise ValueError("is not a path, a glob or a list of them")


Source = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]}),
]


@dataclass(frozen=True)
class Document:
    """One unit of the split: a file, or a line or paragraph of one."""

    name: str
    """Path relative to its source, so that it is the same on every machine."""
    file: Path
    offset: int
    """Byte offset in the file."""
    content: bytes

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Text(Modality):
    """Text files, cut into sequences of `length` bytes or characters; the last one is padded.

    Whole documents are held out, so that no document is in both splits, and of documents with
    the same content only the first counts. Padding is not observed. With `characters` the
    vocabulary is that of the training sequences; other characters of the held-out split are not
    observed, and their bytes do not count in bits per byte.

    Source `python-stdlib`: the `*.py` files of the running Python's standard library, without
    its tests and its build configuration; the same for one version of Python.
    """

    kind: Literal["text"] = "text"
    source: Source = Field(
        description="python-stdlib, or a file, folder or glob relative to the spec, or a list"
    )
    tokenizer: Literal["bytes", "characters"] = Field(
        "bytes", description="one symbol per byte (V = 256) or per character of UTF-8 text"
    )
    documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="what is held out as a whole; a paragraph ends with an empty line"
    )
    heldout: float = Field(
        0.1, gt=0, lt=1, description="fraction of documents held out, by a hash of their names"
    )
    heldout_source: Source | None = Field(
        None, description="held-out documents from here instead; as source"
    )
    max_train_sequences: int | None = Field(
        None, ge=1, description="at most so many training sequences, drawn at random; default all"
    )
    max_heldout_sequences: int | None = Field(
        None, ge=2, description="at most so many held-out sequences, drawn at random; default all"
    )
    seed: int = Field(0, ge=0, description="of the split and of the sequences drawn")

    def resolved(self, base: Path) -> Self:
        update = {name: _absolute(source, base) for name, source in self._sources()}
        return self.model_copy(update=update)

    def check(self) -> None:
        for name, source in self._sources():
            for entry in source:
                if next(_files(entry), None) is None:
                    raise ValueError(f"{name}: {_missing(entry)}")

    def prepare(self, cache: Path) -> TokenTable:
        train, heldout = self._split_documents()
        path = cache / self._hash(train, heldout)
        return store(path, lambda: self._tokenize(train, heldout))

    def word_joins(self, ids: int) -> NDArray[np.bool_] | None:
        """Bytes: runs of letters, digits, underscores and bytes above 127 are words."""
        if self.tokenizer != "bytes":
            return None
        inside_V = np.array(
            [i < 256 and (i > 127 or chr(i).isalnum() or i == 95) for i in range(ids)]
        )
        return np.stack([inside_V, inside_V])

    def words(self) -> str:
        names = ", ".join(Path(entry).name for entry in self.source)
        return f"{names}, {self.tokenizer}, D = {self.length}"

    @classmethod
    def examples(cls) -> list[Self]:
        small = {"max_train_sequences": 64, "max_heldout_sequences": 32}
        return [
            cls.model_validate({"source": STDLIB, "length": 64, **small}),
            cls.model_validate({"source": STDLIB, "tokenizer": "characters", **small}),
        ]

    def _sources(self) -> Iterator[tuple[str, Source]]:
        yield "source", self.source
        if self.heldout_source is not None:
            yield "heldout_source", self.heldout_source

    def _split_documents(self) -> tuple[list[Document], list[Document]]:
        """The documents of both splits, without duplicates, in a fixed order."""
        self.check()
        found = self._read(self.source)
        if self.heldout_source is None:
            train, heldout = self._hold_out(found)
        else:
            heldout = self._read(self.heldout_source)
            known = {d.digest for d in heldout}
            train = [d for d in found if d.digest not in known]
        if not train:
            raise ValueError("source: nothing is left to train on beside the held-out documents")
        return train, heldout

    def _read(self, source: Source) -> list[Document]:
        """The distinct documents of a source that hold anything."""
        documents = (d for f in _source_files(source) for d in _documents(*f, self.documents))
        distinct: dict[str, Document] = {}
        for document in documents:
            if document.content.strip():
                distinct.setdefault(document.digest, document)
        if not distinct:
            raise ValueError(f"source: {_shown(source)} holds no text")
        return list(distinct.values())

    def _hold_out(self, found: list[Document]) -> tuple[list[Document], list[Document]]:
        """The documents with the smallest hashes of (seed, name), at least one, are held out."""
        if len(found) < 2:
            raise ValueError(
                f"source: {_shown(self.source)} is one document, of which none can be held out; "
                "give more files, heldout_source, or documents: line or paragraph"
            )
        count = min(max(1, round(self.heldout * len(found))), len(found) - 1)
        out = {d.digest for d in sorted(found, key=self._rank)[:count]}
        return [d for d in found if d.digest not in out], [d for d in found if d.digest in out]

    def _rank(self, document: Document) -> tuple[str, str]:
        """Order of being held out; the content only decides between equal names."""
        name = f"{self.seed}/{document.name}"
        return hashlib.sha256(name.encode()).hexdigest(), document.digest

    def _hash(self, train: list[Document], heldout: list[Document]) -> str:
        """Of the options and of the documents' names and contents, not of where they lie."""
        options = self.model_dump(mode="json", exclude={"source", "heldout_source"})
        names = [[(d.name, d.offset, d.digest) for d in split] for split in (train, heldout)]
        text = json.dumps([FORMAT, options, names], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _tokenize(
        self, train: list[Document], heldout: list[Document]
    ) -> tuple[Meta, Split, Split]:
        train_rows = self._rows(train, self.max_train_sequences)
        heldout_rows = self._rows(heldout, self.max_heldout_sequences)
        alphabet: Codes = np.arange(256, dtype=np.uint8)
        if self.tokenizer == "characters":
            alphabet = np.unique(train_rows.tokens[train_rows.observed])
        pair = _encode(train_rows, alphabet), _encode(heldout_rows, alphabet)
        if len(pair[1]) < 2:
            raise ValueError(
                f"{len(pair[1])} held-out sequence of {self.length} {self.tokenizer}; "
                "scoring needs at least 2: give more text, a larger heldout or a smaller length"
            )
        unknown = int(heldout_rows.observed.sum() - pair[1].observed.sum())
        groups = {"train": len(train), "heldout": len(heldout)}
        meta = Meta(
            vocabulary_size=len(alphabet),
            length=self.length,
            description=self._describe(groups, pair, unknown),
            groups=groups,
            bytes_per_token=_bytes_per_token(alphabet[pair[1].tokens[pair[1].observed]])
            if self.tokenizer == "characters"
            else 1.0,
        )
        return meta, *pair

    def _rows(self, documents: list[Document], most: int | None) -> Split:
        """Documents cut into rows [N, D] of codes, a random subset of `most` in order."""
        codes = [_codes(d, self.tokenizer) for d in documents]
        rows = [-(-len(c) // self.length) for c in codes]
        documents_N = np.repeat(np.arange(len(codes), dtype=np.int32), rows)
        tokens_ND = np.zeros((sum(rows), self.length), codes[0].dtype)
        observed_ND = np.zeros(tokens_ND.shape, bool)
        starts = np.cumsum([0, *rows[:-1]]) * self.length
        for start, c in zip(starts, codes, strict=True):
            tokens_ND.reshape(-1)[start : start + len(c)] = c
            observed_ND.reshape(-1)[start : start + len(c)] = True
        kept = np.arange(len(tokens_ND))
        if most is not None and most < len(kept):
            kept = np.sort(np.random.default_rng(self.seed).choice(kept, most, replace=False))
        return Split(tokens_ND[kept], observed_ND[kept], documents_N[kept])

    def _describe(self, groups: dict[str, int], pair: tuple[Split, Split], unknown: int) -> str:
        return (
            f"{_shown(self.source)}: {len(pair[0])} + {len(pair[1])} sequences of {self.length} "
            f"{self.tokenizer} from {groups['train']} training + {groups['heldout']} held-out "
            "documents" + (f", {unknown} held-out characters unknown" if unknown else "")
        )


def _shown(source: Source) -> str:
    return ", ".join(source)


def _absolute(source: Source, base: Path) -> Source:
    return tuple(e if e == STDLIB else str(base / Path(e).expanduser()) for e in source)


def _source_files(source: Source) -> Iterator[tuple[str, Path]]:
    """(name, path) of all files of a source, in a fixed order; the name is the same everywhere."""
    for entry in source:
        root = _root(entry)
        yield from sorted((f.relative_to(root).as_posix(), f) for f in _files(entry))


def _root(entry: str) -> Path:
    """The folder that an entry's file names are relative to."""
    if entry == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    path = Path(entry)
    while glob.has_magic(str(path)):
        path = path.parent
    return path if path.is_dir() else path.parent


def _files(entry: str) -> Iterator[Path]:
    """The files of one entry, in no particular order; hidden files of a folder do not count."""
    path = Path(entry)
    if entry == STDLIB:
        yield from _stdlib_files()
    elif path.is_file():
        yield path
    elif path.is_dir():
        yield from (f for f in path.rglob("*") if f.is_file() and not _hidden(f, path))
    else:
        yield from (f for f in map(Path, glob.iglob(entry, recursive=True)) if f.is_file())


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _stdlib_files() -> Iterator[Path]:
    """Build configuration differs between installations of one version, so it is left out."""
    root = _root(STDLIB)
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).parts
        built = any(p.startswith(("config-", "_sysconfigdata")) for p in parts)
        if not built and _NOT_SOURCE.isdisjoint(parts):
            yield file


def _missing(entry: str) -> str:
    if entry == STDLIB:
        return f"this Python has no standard library files in {_root(STDLIB)}"
    if glob.has_magic(entry):
        return f"no file matches {entry}"
    path = Path(entry)
    if path.is_dir():
        return f"the folder {entry} holds no files"
    siblings: Iterable[Path] = path.parent.iterdir() if path.parent.is_dir() else ()
    return f"no such file: {entry}{did_you_mean(path.name, (s.name for s in siblings))}"


def _documents(name: str, file: Path, unit: str) -> Iterator[Document]:
    """The documents of one file; a line or paragraph keeps the newline that ends it."""
    content = file.read_bytes()
    if unit == "file":
        yield Document(name, file, 0, content)
        return
    separator = b"\n" if unit == "line" else b"\n\n"
    offset = 0
    for index, part in enumerate(content.split(separator)):
        yield Document(f"{name}:{index}", file, offset, part + separator[:1])
        offset += len(part) + len(separator)


def _codes(document: Document, tokenizer: str) -> Codes:
    """Bytes, or Unicode code points.

    Raises:
        ValueError: characters of a text that is not UTF-8; names the file and the byte.
    """
    if tokenizer == "bytes":
        return np.frombuffer(document.content, np.uint8)
    try:
        text = document.content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = document.offset + error.start
        raise ValueError(
            f"{document.file}: byte {at} is not UTF-8; use tokenizer: bytes, or convert the file"
        ) from error
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _encode(rows: Split, alphabet: Codes) -> Split:
    """Codes as symbols 0..V-1; a code outside the alphabet is not observed.

    Rows of which nothing is observed are left out.
    """
    symbol = np.zeros(int(alphabet[-1]) + 2, row_dtype(len(alphabet)))
    symbol[alphabet] = np.arange(len(alphabet))
    known = np.zeros(len(symbol), bool)
    known[alphabet] = True
    codes_ND = np.minimum(rows.tokens, len(symbol) - 1, dtype=np.uint32)
    observed_ND = rows.observed & known[codes_ND]
    kept_N = observed_ND.any(1)
    return Split(symbol[codes_ND][kept_N], observed_ND[kept_N], rows.documents[kept_N])


def _bytes_per_token(code_points: Codes) -> float:
    """Mean length in UTF-8, from one byte up to U+007F to four from U+10000 on."""
    longer = [(code_points >= bound).mean() for bound in (0x80, 0x800, 0x10000)]
    return float(1 + sum(longer))
