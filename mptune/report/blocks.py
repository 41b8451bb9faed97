"""What a report consists of, apart from where it is shown: sections of blocks.

HTML and Markdown render the same blocks, so that they cannot say different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from mptune.report.charts import Chart
from mptune.report.layout import Drawing


@dataclass(frozen=True)
class Text:
    """A paragraph; `soft` is a remark about how to read what follows."""

    kind: ClassVar = "text"
    words: str
    soft: bool = False


@dataclass(frozen=True)
class Figures:
    """Charts: below each other; as a choice of which one is seen; or small, beside each other.

    Attributes:
        choices: names of the charts where one is seen at a time, else empty.
        choose: what is chosen, in words.
    """

    kind: ClassVar = "figures"
    charts: tuple[Chart, ...]
    choices: tuple[str, ...] = ()
    choose: str = ""

    @property
    def side_by_side(self) -> bool:
        return len(self.charts) > 1 and all(chart.short for chart in self.charts)


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        value: what it is sorted by, where that is a number.
        below: a second line, smaller.
        tag: a short word beside, e.g. the name of an arm.
        tone: `good`, `bad` or `open`.
        title: words that appear where it is pointed at.
        drawing: a small picture beside the text, and `label`, its text alternative.
    """

    words: str
    value: float | None = None
    below: str = ""
    tag: str = ""
    tone: str = ""
    title: str = ""
    drawing: Drawing | None = None
    label: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted, and filtered where that is asked for.

    Attributes:
        label: its name, for those who do not see it.
        first: number of the row that stands out, or None.
        headed: whether its name stands above it, as it is not that of its section.
        filters: column number -> whether its distinct words are offered as a filter.
    """

    kind: ClassVar = "table"
    label: str
    head: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    first: int | None = None
    headed: bool = False
    searchable: bool = False
    filters: tuple[int, ...] = ()

    def choices(self, column: int) -> list[str]:
        """The distinct texts of a column, in order of appearance."""
        return list(dict.fromkeys(row[column].words for row in self.rows))


@dataclass(frozen=True)
class Listing:
    """Numbered lines."""

    kind: ClassVar = "listing"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Terms and what belongs to them."""

    kind: ClassVar = "pairs"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    kind: ClassVar = "code"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Details:
    """Lines below a title that can be folded."""

    kind: ClassVar = "details"
    title: str
    lines: tuple[str, ...]


Block: TypeAlias = Text | Figures | Table | Listing | Pairs | Code | Details


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `name` is its file, and the page's anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def charts(self) -> list[Chart]:
        return [c for block in self.blocks if isinstance(block, Figures) for c in block.charts]


def text_cells(words: Sequence[str]) -> tuple[Cell, ...]:
    """Cells of plain words."""
    return tuple(Cell(w) for w in words)
