"""The documents of a corpus on disk: which are distinct, which are held out, which to train on.

However many documents there are, memory holds SQLite's cache and one byte a document for each
split.

Shape suffixes: _U documents of the source.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_KIB = 2048
OFFSET = 2**63
"""SQLite's integers are signed: hashes are stored this much lower, in the same order."""


class DocumentIndex:
    """Of one source: rank (the order of holding out) and content of every distinct document."""

    def __init__(self, path: Path) -> None:
        self._path, self.documents, self.distinct = path, 0, 0
        self._db = sqlite3.connect(path)
        for line in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE",
                     f"cache_size = -{CACHE_KIB}"):  # fmt: skip
            self._db.execute(f"PRAGMA {line}")
        self._db.execute("CREATE TABLE scored (digest INTEGER PRIMARY KEY) WITHOUT ROWID")

    def fill(self, found: Iterable[tuple[int, int]]) -> None:
        """Rank and digest of every document, in 0..2^64-1; without a usable content digest 0.

        Of documents with the same digest the first one counts.
        """
        self._db.execute("CREATE TABLE every (number INTEGER PRIMARY KEY, rank, digest)")
        self._db.executemany("INSERT INTO every VALUES (?, ?, ?)", self._rows(found))
        # SQLite takes the other columns from the row that has the minimum.
        self._db.execute(
            "CREATE TABLE document AS SELECT min(number) AS number, rank, digest FROM every "
            "GROUP BY digest"
        )
        self._db.execute("DROP TABLE every")
        self.distinct = self._number("SELECT count(*) FROM document")

    def _rows(self, found: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int, int]]:
        for rank, digest in found:
            if digest:
                yield self.documents, rank - OFFSET, digest - OFFSET
            self.documents += 1

    def ranks(self) -> int:
        """How many different ranks the distinct documents have."""
        return self._number("SELECT count(DISTINCT rank) FROM document")

    def all(self) -> NDArray[np.bool_]:
        """The distinct documents [U]."""
        return self._chosen("SELECT number FROM document")

    def lowest(self, count: int) -> NDArray[np.bool_]:
        """So many distinct documents of the lowest ranks [U]; content decides between equals."""
        return self._chosen("SELECT number FROM document ORDER BY rank, digest LIMIT ?", count)

    def of_lowest_ranks(self, count: int) -> NDArray[np.bool_]:
        """All distinct documents of so many lowest ranks [U]."""
        return self._chosen(
            "SELECT number FROM document WHERE rank <= (SELECT DISTINCT rank FROM document "
            "ORDER BY rank LIMIT 1 OFFSET ?)",
            count - 1,
        )

    def exclude(self, other: DocumentIndex, chosen_U: NDArray[np.bool_]) -> None:
        """Keep the contents of these documents of an index, or of this one, out of `rest`."""
        found = other._db.execute("SELECT number, digest FROM document")
        self._db.executemany(
            "INSERT OR IGNORE INTO scored VALUES (?)", ((d,) for n, d in found if chosen_U[n])
        )

    def rest(self) -> NDArray[np.bool_]:
        """The distinct documents whose content is not excluded [U]."""
        return self._chosen(
            "SELECT number FROM document WHERE digest NOT IN (SELECT digest FROM scored)"
        )

    def close(self) -> None:
        """Delete it."""
        self._db.close()
        self._path.unlink()

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _chosen(self, query: str, *values: Any) -> NDArray[np.bool_]:
        chosen_U = np.zeros(self.documents, bool)
        for (number,) in self._db.execute(query, values):
            chosen_U[number] = True
        return chosen_U
