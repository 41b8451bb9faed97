"""The contents of a report, independent of the format: sections of blocks, and charts.

HTML and Markdown show the same blocks. A chart is series of points over two axes; it has either a
numeric y axis or rows with labels (then a point's y is the number of its row). Every point has a
text of its own, which is shown on hover.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from mptune.report.formatting import minus, raised
from mptune.report.svg import Drawing

# --- charts --------------------------------------------------------------------------------------

Tick: TypeAlias = Callable[[float], str]
Style: TypeAlias = Literal["line", "dots", "steps", "bars"]


@dataclass(frozen=True)
class Point:
    """One point of a chart, with the ends of its interval if it has one.

    Attributes:
        low, high: of y; of x in a chart with rows.
        tip: text that is shown on hover; may have several lines.
        faint: drawn as a small stroke, e.g. a single seed below its mean.
    """

    x: float
    y: float
    tip: str = ""
    low: float | None = None
    high: float | None = None
    faint: bool = False


@dataclass(frozen=True)
class ChartSeries:
    """Points that belong together.

    Attributes:
        label: in the legend; empty: not listed there.
        colour: number of its colour, dash and marker, from 0; see `mptune.report.layout`.
        style: a line through the points with a band, single points with intervals, a staircase, or
            bars from zero.
        area: shade what lies between the line and zero.
        bold: drawn heavier, e.g. the recommended one.
        markers: whether a line shows its points.
    """

    label: str
    points: tuple[Point, ...]
    colour: int = 0
    style: Style = "line"
    area: bool = False
    bold: bool = False
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: with its unit.
        log: logarithmic.
        low, high: ends; None: chosen from the data.
        tick: text of a value.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    tick: Tick | None = None


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: file name without its ending.
        caption: what it shows and how to read it; also its text alternative.
        rows: labels of the rows; empty: y is numeric.
        guides: (x or y, position) of thin reference lines.
        height: of the plotting area in pixels; rows have their own.
        short: drawn small, several side by side on a wide page.
    """

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[ChartSeries, ...]
    rows: tuple[str, ...] = ()
    guides: tuple[tuple[Literal["x", "y"], float], ...] = ()
    height: int = 280
    short: bool = False


def percent_tick(value: float) -> str:
    """`15 %` of a fraction."""
    return f"{100 * value:.3g} %"


def power_tick(value: float) -> str:
    """A power of ten with its factor, `3×10¹²`."""
    digits, exponent = f"{value:.1e}".replace(".0e", "e").split("e")
    return f"{'' if digits == '1' else f'{digits}×'}10{raised(exponent)}"


def number_tick(step: float) -> Tick:
    """As many digits as the step between ticks has."""
    digits = 0
    while digits < 6 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return lambda value: minus(value, digits)


def short(words: str, length: int) -> str:
    """Cut to a length, with an ellipsis."""
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


# --- blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `soft` is a remark about how to read what follows."""

    kind: ClassVar = "paragraph"
    words: str
    soft: bool = False


@dataclass(frozen=True)
class Figures:
    """Charts: one below the other, one at a time with a choice, or small and side by side.

    Attributes:
        choices: names of the charts if one is shown at a time, else empty.
        choose: label of the choice.
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
    """A column of a table; `key` is that of its title."""

    title: str
    numeric: bool = True
    key: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        value: number that the column is sorted by; None: sorted by its text.
        below: a second line, smaller.
        tag: a short text beside it, e.g. the name of an arm.
        tone: `good`, `bad` or `open`.
        title: text that is shown on hover.
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
    """Rows that can be sorted, and filtered if `searchable` or `filters` is set.

    Attributes:
        label: its name, for screen readers.
        first: number of the highlighted row, or None.
        headed: whether its name is shown above it.
        filters: keys of the columns whose distinct texts are offered as a filter.
    """

    kind: ClassVar = "table"
    label: str
    head: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    first: int | None = None
    headed: bool = False
    searchable: bool = False
    filters: tuple[str, ...] = ()

    @property
    def menus(self) -> list[tuple[int, list[str]]]:
        """Number and distinct texts, in order of appearance, of each column that is a filter."""
        wanted = [k for k, column in enumerate(self.head) if column.key in self.filters]
        return [(k, list(dict.fromkeys(row[k].words for row in self.rows))) for k in wanted]


@dataclass(frozen=True)
class Listing:
    """Numbered lines."""

    kind: ClassVar = "listing"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Terms and their values."""

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


Block: TypeAlias = Paragraph | Figures | Table | Listing | Pairs | Code | Details


@dataclass(frozen=True)
class ReportSection:
    """A titled part of the report; `name` is its file, and the page's anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def charts(self) -> list[Chart]:
        return [c for block in self.blocks if isinstance(block, Figures) for c in block.charts]
