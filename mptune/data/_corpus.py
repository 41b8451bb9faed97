"""The documents of a text source: read as a stream, indexed on disk, and chosen for each split.

Shape suffixes: _U documents of the source.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mptune.data._records import BrokenRecords, Reader, Record, seconds
from mptune.data._sources import File
from mptune.data._tokenizers import not_utf8

CACHE_KIB = 2048
OFFSET = 2**63
"""SQLite's integers are signed: hashes are stored this much lower, in the same order."""

QUIET_S = 2.0
"""Progress is shown of what takes longer."""

LINE_EVERY_S = 10.0
"""Seconds between lines of progress where there is no terminal."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`; `total` and `n` are bytes. Shows a bar on stderr, or lines in a log."""
    began = shown = time.monotonic()
    done, terminal, open_line = 0, sys.stderr.isatty(), False

    def advance(size: int) -> None:
        nonlocal done, shown, open_line
        done += size
        now = time.monotonic()
        if now - began <= QUIET_S or now - shown <= (0.2 if terminal else LINE_EVERY_S):
            return
        shown, open_line = now, terminal
        share = min(1.0, done / total) if total else 0.0
        line = f"{what} {'━' * round(24 * share):24} {share:4.0%} {done / 1e6:,.0f} MB, "
        line += f"{done / (now - began) / 1e6:.1f} MB/s"
        print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    yield advance
    if open_line:
        print(" " * 78, end="\r", file=sys.stderr, flush=True)


class DocumentIndex:
    """Rank (place in the order of holding out) and content hash of the documents of all corpora.

    In SQLite on disk: memory holds its cache, and one byte per document for each split.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._db = path, sqlite3.connect(path)
        for line in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE",
                     f"cache_size = -{CACHE_KIB}"):  # fmt: skip
            self._db.execute(f"PRAGMA {line}")
        self._db.execute("CREATE TABLE document (corpus, number, rank, digest, held DEFAULT 0)")

    def fill(self, corpus: str, found: Iterable[tuple[int, int]]) -> int:
        """Add rank and digest of every document, in 0..2^64-1; returns how many there are.

        Digest 0 is left out. Of documents with the same digest, only the first one counts.
        """
        documents = 0

        def rows() -> Iterator[tuple[int, int, int]]:
            nonlocal documents
            for rank, digest in found:
                if digest:
                    yield documents, rank - OFFSET, digest - OFFSET
                documents += 1

        self._db.execute("CREATE TABLE every (number INTEGER PRIMARY KEY, rank, digest)")
        self._db.executemany("INSERT INTO every VALUES (?, ?, ?)", rows())
        # SQLite takes the other columns from the row that has the minimum.
        self._db.execute(
            "INSERT INTO document (corpus, number, rank, digest) "
            "SELECT ?, min(number), rank, digest FROM every GROUP BY digest",
            (corpus,),
        )
        self._db.execute("DROP TABLE every")
        return documents

    def query(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Rows of the table `document`: its columns are corpus, number, rank, digest and held."""
        return self._db.execute(sql, values)

    def close(self) -> None:
        """Delete the file."""
        self._db.close()
        self._path.unlink()


@dataclass
class Corpus:
    """The documents of one source: indexed on disk, and read again when they are needed.

    Documents are held out in the order of a rank: a hash of the seed and the name or group; or
    the time, the latest first.

    Attributes:
        name: of the source's key in the spec.
        shown: the source as text, for errors.
        utf8: documents must be UTF-8.
        by_key: the rank is that of a column; None: of the document's name.
        documents: their number, once they are scanned.
    """

    name: str
    shown: str
    files: list[File]
    reader: Reader
    utf8: bool
    seed: int
    index: DocumentIndex
    by_key: Literal["group", "time"] | None = None
    documents: int = 0

    def scan(self) -> None:
        """Read all documents once.

        Raises:
            ValueError: a document is broken, or there is no text at all.
        """
        found = ((self._rank(r), self._digest(r)) for r in self._records(f"reading {self.name}"))
        self.documents = self.index.fill(self.name, found)
        if not self._count("*"):
            raise ValueError(f"{self.name}: {self.shown} holds no text")

    def chosen(self, where: str = "true") -> NDArray[np.bool_]:
        """The distinct documents [U] for which a condition holds, as SQL."""
        chosen_U = np.zeros(self.documents, bool)
        sql = f"SELECT number FROM document WHERE corpus = ? AND {where}"
        for (number,) in self.index.query(sql, self.name):
            chosen_U[number] = True
        return chosen_U

    def read(self, chosen_U: NDArray[np.bool_], what: str) -> Iterator[Record]:
        """The chosen documents again, in order."""
        # Broken records are counted by `scan` alone.
        again = replace(self.reader, broken=BrokenRecords(self.reader.broken.on_error))
        for number, record in enumerate(replace(self, reader=again)._records(what)):
            if chosen_U[number]:
                yield record

    def hold_out(self, share: float) -> None:
        """Mark the documents or groups with the smallest ranks: at least one, and never all.

        Raises:
            ValueError: there is only one.
        """
        units = self._count("DISTINCT rank" if self.by_key else "*")
        if units < 2:
            what = "group" if self.by_key else "document"
            raise ValueError(
                f"source: {self.shown} is one {what}, so nothing can be held out; "
                "give more files, heldout_source, or documents: line or paragraph"
            )
        count = min(max(1, round(share * units)), units - 1)
        columns = "rank" if self.by_key else "rank, digest"  # the digest decides ties
        self.index.query(
            f"UPDATE document SET held = 1 WHERE corpus = ?1 AND ({columns}) <= (SELECT DISTINCT "
            f"{columns} FROM document WHERE corpus = ?1 ORDER BY {columns} LIMIT 1 OFFSET ?2)",
            self.name,
            count - 1,
        )

    def _count(self, what: str) -> int:
        sql = f"SELECT count({what}) FROM document WHERE corpus = ?"
        return int(self.index.query(sql, self.name).fetchone()[0])

    def _records(self, what: str) -> Iterator[Record]:
        with progress(what, sum(f.size() for f in self.files)) as advance:
            for file in self.files:
                for record in self.reader.read(file):
                    advance(len(record.content))
                    yield record

    def _rank(self, record: Record) -> int:
        if self.by_key == "time":
            return _time_rank(record)
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


def _time_rank(record: Record) -> int:
    """Milliseconds, so that the latest document has the smallest rank."""
    at = seconds(record.keys[0])
    if not math.isfinite(at):
        raise ValueError(f"{record.place}: {record.keys[0]!r} is neither a number nor an ISO date")
    return 2**63 - math.floor(at * 1000)
