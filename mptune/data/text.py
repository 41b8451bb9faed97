"""Text and sequences: bytes, characters or subwords of documents.

A corpus is read as a stream: once for the names and hashes that decide what is held out, once for
each split to tokenize it. In memory are a batch and some 20 bytes per document.

Shape suffixes: _N rows of a split, _ND rows x positions, _U documents of the source.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

from mptune.artifacts import sha256
from mptune.data import _sources
from mptune.data._frames import Values, wanted_words, word
from mptune.data._records import (
    BrokenRecords,
    OnError,
    Reader,
    Record,
    Unit,
    is_missing,
    seconds,
    without_group,
)
from mptune.data._sources import STDLIB, File, Source
from mptune.data._table import (
    Meta,
    Split,
    SplitWriter,
    TokenTable,
    build_table,
    domain_file,
    drop_rows,
    table_key,
    write_meta,
)
from mptune.data._tokenizers import (
    KINDS,
    Bytes,
    Characters,
    Codec,
    Encoded,
    Subwords,
    not_utf8,
    tokenizer_file,
)
from mptune.data.base import Modality
from mptune.errors import did_you_mean, plural
from mptune.spec.schema import Section

BoolArray = NDArray[np.bool_]

BATCH_BYTES = 2**21
"""Size of a batch of text to tokenize."""

NOISE = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


_SMALL = {"max_train_sequences": 64, "max_heldout_sequences": 32}
_SMALL_NOISY = {"noise": 0.2, "max_sequences": 32}


class TextDomain(Section):
    """A held-out distribution: another source, chosen documents, or those held out corrupted."""

    source: Source | None = Field(None, description="as data.source, which is the default of where")
    where: dict[str, Values] = Field(
        default_factory=dict,
        description="column -> value or values; of data.source, these documents are neither "
        "trained on nor held out",
    )
    column: str | None = Field(None, description="of the text; default that of the data")
    documents: Unit | None = Field(None, description="as data.documents, which is the default")
    group: str | None = Field(None, description="as data.group, which is the default")
    heldout: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="fraction of its documents that is scored, by a hash of their names; the "
        "others are trained on by training.mix. Default: all are scored",
    )
    noise: float = Field(
        0.0, ge=0, lt=1, description="share of the bytes of ASCII text replaced by random letters"
    )
    max_sequences: int | None = Field(None, ge=2, description="at most this many, of many groups")

    @model_validator(mode="after")
    def _is_shifted(self) -> Self:
        if not (self.source or self.where or self.noise):
            raise ValueError("needs where, a source of its own, or noise on held-out documents")
        keys = ("column", "documents", "group", "heldout")
        own = [name for name in keys if getattr(self, name)]
        if own and not (self.source or self.where):
            raise ValueError(f"{own[0]} is of a source; without one, the held-out documents count")
        return self


def documents(
    source: Sequence[str], unit: Unit, base: Path, group: str | None = None
) -> dict[str, Any]:
    """The distinct texts of a source (anything that `Text.source` takes), in a fixed order.

    Each with the value of its column `group` (see `Text.group`), or with a label of its own where
    there is none. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: an entry names nothing, or something is broken; one line.
        OSError: a file cannot be read.
    """
    reader, found = Reader(unit=unit, extra=(group,) if group else ()), dict[str, Any]()
    for file in _sources.files("source", _sources.absolute(source, base)):
        for record in reader.read(file):
            if record.content.strip():
                text = record.content.decode("utf-8", errors="replace")
                found.setdefault(text, record.group if group else len(found))
    return found


class Text(Modality):
    """Documents of text or of sequences (DNA, proteins, SMILES), cut into rows of `length` tokens.

    Whole documents (or groups of them) are held out, so no document is in both splits. Of documents
    with the same content, only the first counts. A row holds one document and is padded, so that
    mask counts are those of one document (`training.pack` trains on several short rows at once).
    Padding and tokens unknown to the tokenizer are not observed, and bytes of unknown tokens do not
    count in bits per byte.

    Sources: text files, JSONL, Parquet, CSV, FASTA, `datasets`; local paths and globs, fsspec
    URLs, `hf:NAME:SPLIT`, `package:NAME/path`, and `python-stdlib`, the `*.py` files of the running
    Python's standard library without its tests; the same for one version of Python.
    """

    kind: Literal["text"] = "text"
    EXAMPLES = (
        {"source": STDLIB, "length": 64, **_SMALL, "domains": {"noisy": _SMALL_NOISY}},
        {"source": STDLIB, "tokenizer": "characters", **_SMALL},
        {"source": "package:mptune/*.py", "tokenizer": "bpe", "vocabulary": 300, **_SMALL},
    )
    source: Source = Field(
        description="file, folder, glob, URL, hf:, package: or python-stdlib, or a list of them"
    )
    column: str = Field("text", description="of the text, in files with columns")
    tokenizer: str = Field(
        "bytes",
        min_length=1,
        description="bytes (V = 256), characters, bpe (trained on the training documents), or a "
        "folder or hub name of a tokenizer",
    )
    vocabulary: int = Field(
        8192, ge=257, le=1_000_000, description="symbols of a bpe trained here, at least 257"
    )
    documents: Unit = Field(
        "file",
        description="of plain text, what is held out as a whole; a paragraph ends with an "
        "empty line. In files with columns a document is a row",
    )
    group: str | None = Field(
        None,
        description="column of sites, authors, ...: documents with one value stay in one split, "
        "and errors are between values; of plain text `file`, of FASTA `file` or `header`. "
        "Default: single documents",
    )
    time: str | None = Field(
        None, description="column with a number or ISO date; the latest documents are held out"
    )
    heldout: float = Field(
        0.1, gt=0, lt=1, description="fraction of documents held out, by a hash of their names"
    )
    heldout_source: Source | None = Field(
        None, description="held-out documents from here instead; as source"
    )
    domains: dict[str, TextDomain] = Field(
        default_factory=dict, description="held-out distributions that every trial is scored on"
    )
    errors: OnError = Field(
        "stop", description="whether a broken record stops the preparation or is skipped, counted"
    )
    max_train_sequences: int | None = Field(
        None, ge=1, description="random subset of at most this many training sequences; default all"
    )
    max_heldout_sequences: int | None = Field(
        None,
        ge=2,
        description="at most this many held-out sequences, of many groups; default all",
    )
    seed: int = Field(0, ge=0, description="of the split and of the sequences drawn")

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Self:
        if self.group is not None and self.time is not None:
            raise ValueError("group and time are two ways to hold out; give one")
        return self

    def resolved(self, base: Path) -> Self:
        domains = {
            name: domain.model_copy(update={"source": _sources.absolute(domain.source, base)})
            if domain.source
            else domain
            for name, domain in self.domains.items()
        }
        source = _sources.absolute(self.source, base)
        update: dict[str, Any] = {"domains": domains, "source": source}
        if self.heldout_source is not None:
            update["heldout_source"] = _sources.absolute(self.heldout_source, base)
        if self.tokenizer not in KINDS and tokenizer_file(str(base / self.tokenizer)):
            update["tokenizer"] = str(base / self.tokenizer)
        return self.model_copy(update=update)

    def expected_symbols(self) -> int:
        symbols = {"bytes": 256, "characters": 128, "bpe": self.vocabulary}
        return symbols.get(self.tokenizer, 32_000)  # as BERT's 30,522

    def check(self) -> None:
        for name, source in self._sources():
            _sources.check(name, source)
        near = did_you_mean(self.tokenizer, KINDS)
        if self.tokenizer not in KINDS and near and tokenizer_file(self.tokenizer) is None:
            raise ValueError(
                f"tokenizer: {self.tokenizer!r} is not one of {', '.join(KINDS)}, nor a file or "
                f"folder{near}"
            )

    def prepare(self, cache: Path) -> TokenTable:
        self.check()
        files = {name: _sources.files(name, source) for name, source in self._sources()}
        options = self.model_dump(mode="json", exclude={"source", "heldout_source"})
        for domain in options["domains"].values():
            domain.pop("source")
        if self.tokenizer not in KINDS and (file := tokenizer_file(self.tokenizer)):
            options["tokenizer"] = sha256(file)
        contents = {n: [(f.name, f.digest()) for f in found] for n, found in files.items()}
        path = cache / table_key(options, contents)
        return build_table(path, lambda aside: _Preparation(self, files, aside).run())

    def word_joins(self, ids: int) -> BoolArray | None:
        """Bytes: runs of letters, digits, underscores and bytes above 127 are words."""
        if self.tokenizer != "bytes":
            return None
        inside_V = np.array(
            [i < 256 and (i > 127 or chr(i).isalnum() or i == 95) for i in range(ids)]
        )
        return np.stack([inside_V, inside_V])

    def words(self) -> str:
        name = Path(self.tokenizer).name
        tokens = f"bpe {self.vocabulary}" if self.tokenizer == "bpe" else name
        return f"{_sources.short(self.source)}, {tokens}, D = {self.length}"

    def _sources(self) -> Iterator[tuple[str, Source]]:
        yield "source", self.source
        if self.heldout_source is not None:
            yield "heldout_source", self.heldout_source
        for name, domain in self.domains.items():
            if domain.source is not None:
                yield f"domains.{name}.source", domain.source


# --- the documents of a source ---------------------------------------------------------------

KEYS = np.dtype([("rank", np.uint64), ("digest", np.uint64)])

ADVANCE_BYTES = 2**20
"""Text between two updates of the bar of progress."""


@dataclass
class Corpus:
    """The documents of one source, read again whenever they are needed.

    Documents are held out in the order of a rank: a hash of the seed and the name or group; or
    the time, the latest first.

    Attributes:
        name: of the source's key in the spec.
        shown: the source as text, for errors.
        utf8: documents must be UTF-8.
        by_key: the rank is that of a column; None: of the document's name.
        keys_U: rank and hash of the content of each document; hash 0 if it is not usable.
        distinct_U: which have text, and are the first with theirs.
    """

    name: str
    shown: str
    files: list[File]
    reader: Reader
    utf8: bool
    seed: int
    by_key: Literal["group", "time"] | None = None
    keys_U: NDArray[Any] = field(init=False)
    distinct_U: BoolArray = field(init=False)

    def scan(self) -> None:
        """Read all documents once: `keys_U` and `distinct_U` are known from then on.

        Raises:
            ValueError: a document is broken, or there is no text at all.
        """
        found = ((self._rank(r), self._digest(r)) for r in self._records(f"reading {self.name}"))
        self.keys_U = np.fromiter(found, KEYS)
        first = np.unique(self.keys_U["digest"], return_index=True)[1]
        self.distinct_U = np.zeros(len(self.keys_U), bool)
        self.distinct_U[first[self.keys_U["digest"][first] > 0]] = True
        if not self.distinct_U.any():
            raise ValueError(f"{self.name}: {self.shown} holds no text")

    def read(self, chosen_U: BoolArray, what: str) -> Iterator[Record]:
        """The chosen documents again, in order."""
        # Broken records are counted by `scan` alone.
        again = replace(self.reader, broken=BrokenRecords(self.reader.broken.on_error))
        for number, record in enumerate(replace(self, reader=again)._records(what)):
            if chosen_U[number]:
                yield record

    def held_out(self, share: float) -> BoolArray:
        """The documents or groups [U] with the smallest ranks: at least one, and never all.

        Raises:
            ValueError: there is only one.
        """
        # Of single documents the digest decides ties.
        keys_U = self.keys_U["rank"] if self.by_key else self.keys_U
        units, unit_n = np.unique(keys_U[self.distinct_U], return_inverse=True)
        if len(units) < 2:
            what = "group" if self.by_key else "document"
            raise ValueError(
                f"{self.name}: {self.shown} is one {what}, so nothing can be held out; "
                "give more files, heldout_source, or documents: line or paragraph"
            )
        count = min(max(1, round(share * len(units))), len(units) - 1)
        held_U = self.distinct_U.copy()
        held_U[self.distinct_U] = unit_n < count
        return held_U

    def _records(self, what: str) -> Iterator[Record]:
        """All records, with a bar of progress on a terminal."""
        console = Console(stderr=True)
        columns = TextColumn(what), BarColumn(), TaskProgressColumn(), DownloadColumn()
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task, read = bar.add_task(what, total=sum(f.size() for f in self.files)), 0
            for file in self.files:
                for record in self.reader.read(file):
                    read += len(record.content)
                    if read > ADVANCE_BYTES:
                        bar.advance(task, read)
                        read = 0
                    yield record

    def _rank(self, record: Record) -> int:
        if self.by_key == "time":
            at, given = seconds(record.keys[0]), record.keys[0]
            if not math.isfinite(at):
                raise ValueError(f"{record.place}: {given!r} is neither a number nor an ISO date")
            # Milliseconds, so that the latest document has the smallest rank.
            return 2**63 - math.floor(at * 1000)
        name = record.group if self.by_key else record.name
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def _digest(self, record: Record) -> int:
        """Hash of the content; 0 where it is empty or not usable."""
        if not record.content or record.content.isspace():
            return 0
        if self.utf8:
            try:
                record.content.decode("utf-8")
            except UnicodeDecodeError as error:
                self.reader.broken(record.place, not_utf8(error))
                return 0
        return int.from_bytes(hashlib.sha256(record.content).digest()[:8], "big") or 1


# --- preparing ---------------------------------------------------------------------------------


@dataclass
class _Part:
    """A split: its documents of a corpus, and the counts of what was written.

    Attributes:
        rest_U: of a domain: its documents that are trained on.
    """

    name: str
    corpus: Corpus
    chosen_U: BoolArray
    most: int | None = None
    noise: float = 0.0
    rest_U: BoolArray | None = None
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    bytes: int = 0
    ungrouped: int = 0


class _Preparation:
    """One run from the files to a table in the directory `folder`."""

    def __init__(self, data: Text, files: Mapping[str, list[File]], folder: Path) -> None:
        self._data, self._files, self._folder = data, files, folder

    def run(self) -> None:
        """Write everything; the caller moves it into place."""
        (train, *scored), mixed = self._parts()
        parts = [train, *scored]
        codec = self._codec([train, *mixed])
        for part in (*parts, *mixed):
            self._write(part, codec)
        for part in scored:
            if part.rows < 2:
                what = "held-out" if part.name == "heldout" else part.name
                raise ValueError(
                    f"{part.rows} {what} sequence of {self._data.length} "
                    f"{_symbols(self._data.tokenizer)}; scoring needs at least 2: give more text, "
                    "a larger heldout or a smaller length"
                )
        if isinstance(codec, Characters | Subwords):
            codec.save(self._folder)
        write_meta(self._folder, self._meta(parts, mixed, codec))

    def _corpus(self, name: str, domain: TextDomain | None = None) -> Corpus:
        data, source = self._data, name if name in self._files else "source"
        only = {c: wanted_words(values) for c, values in (domain.where if domain else {}).items()}
        never = [
            {column: wanted_words(values) for column, values in other.where.items()}
            for other in data.domains.values()
            if name == "source" and other.where and other.source is None
        ]
        columns = dict.fromkeys(column for where in (only, *never) for column in where)

        def keeps(values: Mapping[str, Any]) -> bool:
            def has(where: dict[str, set[str]]) -> bool:
                return all(word(values[column]) in words for column, words in where.items())

            return has(only) and not any(map(has, never))

        group, time = (domain and domain.group) or data.group, name == "source" and data.time
        by_key: Literal["group", "time"] | None = "group" if group else "time" if time else None
        corpus = Corpus(
            name=name,
            shown=", ".join(dict(data._sources())[source])
            + (f" where {json.dumps(domain.where)}" if domain and domain.where else ""),
            files=self._files[source],
            reader=Reader(
                column=(domain and domain.column) or data.column,
                extra=tuple(key for key in (group, time, *columns) if key),
                keeps=keeps if columns else None,
                unit=(domain and domain.documents) or data.documents,
                broken=BrokenRecords(data.errors),
            ),
            utf8=data.tokenizer != "bytes",
            seed=data.seed,
            by_key=by_key,
        )
        corpus.scan()
        return corpus

    def _parts(self) -> tuple[list[_Part], list[_Part]]:
        """Training, held-out and domain documents, and those of domains that are trained on.

        No document that is trained on is scored.
        """
        data, source = self._data, self._corpus("source")
        home, held_U = source, np.zeros(0, bool)
        if data.heldout_source is None:
            held_U = home.held_out(data.heldout)
        else:
            home = self._corpus("heldout_source")
            held_U = home.distinct_U
        parts = [_Part("heldout", home, held_U, data.max_heldout_sequences)]
        for name, domain in data.domains.items():
            corpus, chosen_U, rest_U = home, held_U, None
            if domain.source or domain.where:
                key = "source" if domain.source else "where"
                corpus = self._corpus(f"domains.{name}.{key}", domain)
                chosen_U = corpus.distinct_U
            if domain.heldout is not None:
                chosen_U = corpus.held_out(domain.heldout)
                rest_U = corpus.distinct_U & ~chosen_U
            file, most = domain_file(name), domain.max_sequences
            parts.append(_Part(file, corpus, chosen_U, most, noise=domain.noise, rest_U=rest_U))
        scored = np.concatenate([part.corpus.keys_U[part.chosen_U] for part in parts])

        def trained(name: str, corpus: Corpus, chosen_U: BoolArray, most: int | None) -> _Part:
            chosen_U = chosen_U & ~np.isin(corpus.keys_U["digest"], scored["digest"])
            if corpus.by_key == home.by_key == "group":
                chosen_U &= ~np.isin(corpus.keys_U["rank"], home.keys_U["rank"][held_U])
            if not chosen_U.any():
                raise ValueError(
                    f"{corpus.name}: all documents are held out; none is left to train on"
                )
            return _Part(name, corpus, chosen_U, most)

        train = trained("train", source, source.distinct_U, data.max_train_sequences)
        mixed = [
            trained(f"train-{name}", part.corpus, part.rest_U, None)
            for name, part in zip(data.domains, parts[1:], strict=True)
            if part.rest_U is not None
        ]
        return [train, *parts], mixed

    def _codec(self, trained: list[_Part]) -> Codec:
        kind = self._data.tokenizer
        if kind == "bytes":
            return Bytes()
        if kind not in KINDS:
            return Subwords.load(kind)
        records = chain(*(p.corpus.read(p.chosen_U, f"fitting {kind}") for p in trained))
        if kind == "characters":
            return Characters.fit(records)
        return Subwords.train(records, self._data.vocabulary)

    def _write(self, part: _Part, codec: Codec) -> None:
        """Tokenize a part's documents into rows, and keep a random subset if `most` is given."""
        length, seed = self._data.length, self._data.seed
        records = part.corpus.read(part.chosen_U, f"tokenizing {part.name}")
        if part.noise:
            records = _noisy(records, part.noise, seed)
        grouped, numbers, documents = part.corpus.by_key == "group", dict[str, int](), 0
        with SplitWriter(self._folder, part.name, length, codec.vocabulary_size) as writer:
            for batch in _batches(records):
                encoded = codec.encode(batch)
                part.tokens += sum(int(e.known.sum()) for e in encoded)
                part.unknown += sum(int((~e.known).sum()) for e in encoded)
                part.bytes += sum(e.size for e in encoded)
                groups: Sequence[int] = range(documents, documents + len(batch))
                documents += len(batch)
                if grouped:
                    groups = [numbers.setdefault(r.group, len(numbers)) for r in batch]
                    part.ungrouped += sum(is_missing(r.keys[0]) for r in batch)
                writer.append(_cut(encoded, groups, length))
            part.rows = writer.rows
        if part.most is not None and part.most < part.rows:
            drawn = np.random.default_rng(seed).permutation(part.rows)
            if part.name != "train":  # what is trained on keeps its proportions
                # One row of each group comes first, so that as many groups as possible stay.
                groups_N = np.load(self._folder / f"{part.name}_groups.npy")
                first = np.sort(np.unique(groups_N[drawn], return_index=True)[1])
                drawn = np.concatenate([drawn[first], np.delete(drawn, first)])
            kept = np.sort(drawn[: part.most])
            drop_rows(self._folder, part.name, kept, ("tokens", "observed", "groups"))
            part.rows = part.most

    def _meta(self, parts: list[_Part], mixed: list[_Part], codec: Codec) -> Meta:
        data, (train, held, *domains) = self._data, parts
        corpora = {id(part.corpus): part.corpus for part in parts}.values()
        skipped = sum((corpus.reader.broken.skipped for corpus in corpora), Counter[str]())
        documents = {part.name: int(part.chosen_U.sum()) for part in (train, held)}
        symbols = _symbols(data.tokenizer)
        return Meta(
            vocabulary_size=codec.vocabulary_size,
            length=data.length,
            description=f"{', '.join(data.source)}: {train.rows} + {held.rows} sequences of "
            f"{data.length} {symbols} from {documents['train']} training + "
            f"{plural(documents['heldout'], 'held-out document')}"
            + without_group(train.ungrouped + held.ungrouped, "documents", data.group)
            + "".join(f", {p.rows} of {p.name.removeprefix('train-')} to mix in" for p in mixed)
            + (f", {held.unknown} held-out {symbols} unknown" if held.unknown else "")
            + (f", {skipped.total()} broken records skipped" if skipped else ""),
            groups={
                part.name: len(np.unique(np.load(self._folder / f"{part.name}_groups.npy")))
                for part in (train, held)
            },
            grouped_by=data.group or "document",
            bytes_per_token=held.bytes / max(held.tokens, 1),
            domains=tuple(data.domains),
            domain_bytes={
                name: part.bytes / max(part.tokens, 1)
                for name, part in zip(data.domains, domains, strict=True)
            },
            skipped=dict(skipped),
            unknown={part.name: part.unknown for part in parts if part.unknown},
        )


def _symbols(tokenizer: str) -> str:
    return tokenizer if tokenizer in ("bytes", "characters") else "tokens"


def _noisy(records: Iterator[Record], share: float, seed: int) -> Iterator[Record]:
    """Replace ASCII letters, digits and signs by random letters; other bytes stay valid UTF-8."""
    rng = np.random.default_rng([seed, 1])
    for record in records:
        codes = np.frombuffer(record.content, np.uint8)
        hit = (rng.random(len(codes)) < share) & (codes > 32) & (codes < 127)
        changed = np.where(hit, rng.choice(NOISE, len(codes)), codes).astype(np.uint8)
        yield Record(record.name, record.place, changed.tobytes(), record.keys)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch, size = list[Record](), 0
    for record in records:
        batch.append(record)
        size += len(record.content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut(documents: Sequence[Encoded], groups: Sequence[int], length: int) -> Split:
    """Rows of `length` tokens, the last of a document padded; none of unknown tokens only."""
    parts = [
        (np.pad(d.ids, gap := (0, -len(d.ids) % length)), np.pad(d.known, gap)) for d in documents
    ]
    tokens_ND, observed_ND = (
        np.concatenate(each).reshape(-1, length) for each in zip(*parts, strict=True)
    )
    kept_N = observed_ND.any(1)
    groups_N = np.repeat(groups, [len(ids) // length for ids, _ in parts])
    return Split(tokens_ND[kept_N], observed_ND[kept_N], groups_N[kept_N].astype(np.int32))
