"""What a figure shows, apart from how it is drawn: series of points over two axes.

A chart either has a numeric y axis, or rows with labels (then a point's y is the number of its
row). Every point has words of its own, which appear where it is pointed at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mptune.report.words import minus

Tick: TypeAlias = Callable[[float], str]
Style: TypeAlias = Literal["line", "dots", "steps", "bars"]


@dataclass(frozen=True)
class Point:
    """One figure of a chart, with the ends of its interval where it has one.

    Attributes:
        tip: what is said when it is pointed at, a line each.
        faint: drawn as a small stroke, e.g. a single seed below its mean.
    """

    x: float
    y: float
    tip: str = ""
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    faint: bool = False


@dataclass(frozen=True)
class Series:
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
        low, high: ends, where the data should not choose them.
        tick: words of a value.
        ticks: positions and words, where the values are no numbers.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    tick: Tick | None = None
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: file name without its ending.
        caption: what it shows and how to read it; also its text alternative.
        rows: labels of the rows, where y is no number.
        guides: (x or y, position): thin lines to hold the points against.
        height: of the plotting area in pixels; rows have their own.
        short: drawn small, several beside each other on a wide page.
    """

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
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
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{raised}" if digits == "1" else f"{digits}×10{raised}"


def number_tick(step: float) -> Tick:
    """As many digits as the step between ticks has."""
    digits = 0
    while digits < 6 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return lambda value: minus(value, digits)


def short(words: str, length: int) -> str:
    """Cut to a length, with an ellipsis."""
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
