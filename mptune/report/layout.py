"""The layout of a chart: the position of every shape on a canvas of pixels.

Colours are names: the page has a value for each name in light mode and another in dark mode. Series
differ by dash and by marker as well as by colour, so that they can be told apart with colour
blindness and in grey print (palette: Okabe and Ito 2008).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from mptune.report.blocks import Axis, Chart, ChartSeries, Point, number_tick, power_tick, short
from mptune.report.drawing import (
    FONT,
    Area,
    Drawing,
    Label,
    Marker,
    MarkerShape,
    Pixel,
    Shape,
    Stroke,
)

WIDE, NARROW, SHORT = 920, 340, 450
"""Widths in pixels: on a desktop, on a phone, and of one of two charts side by side."""

SERIES = 6
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3), (12, 4), (4, 2))
MARKERS: tuple[MarkerShape, ...] = ("circle", "square", "triangle", "diamond", "cross", "plus")


def lay_out(chart: Chart, narrow: bool = False) -> Drawing:
    """Place a chart on a canvas for a desktop, or for a phone if `narrow`."""
    return _Layout(chart, narrow).drawing()


def text_width(words: str, size: float = FONT) -> float:
    """Estimated width of a text in pixels; a full-width character counts about double."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in words)
    return size * (0.54 * (len(words) - wide) + 1.0 * wide)


def colour_of(series: int) -> str:
    """Name of the colour of a series."""
    return f"series-{series % SERIES + 1}"


# --- scales ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Maps values of an axis to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        a, b, v = self.low, self.high, value
        if self.log:
            a, b, v = math.log(a), math.log(b), math.log(max(v, 1e-300))
        share = (v - a) / (b - a)
        return self.start + min(max(share, -0.02), 1.02) * (self.end - self.start)


def _extent(axis: Axis, values: Sequence[float], pad: float) -> tuple[float, float]:
    """Ends of an axis: its own, or those of the values with the share `pad` as margin."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
    low, high = min(finite, default=1.0), max(finite, default=2.0)
    if axis.log:
        room = max((high / low) ** pad, 1.15)
        low, high = low / room, high * room
    else:
        room = pad * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    return (
        axis.low if axis.low is not None else low,
        axis.high if axis.high is not None else high,
    )


def _ticks(axis: Axis, low: float, high: float, most: int) -> list[tuple[float, str]]:
    if axis.ticks:
        return list(axis.ticks)
    places = _log_places(low, high, most) if axis.log else axis_places(low, high, most)
    step = places[1] - places[0] if len(places) > 1 else 1.0
    words = axis.tick or (power_tick if axis.log else number_tick(step))
    return [(place, words(place)) for place in places]


def axis_places(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten, at most `most` of them."""
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_places(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if high < 8 * low:
        return axis_places(low, high, most)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        every = [f * 10.0**k for k in range(first, last + 1) for f in factors]
        places = [p for p in every if low <= p <= high]
        if len(places) <= most:
            return places
    return places[:: math.ceil(len(places) / most)]


# --- layout ------------------------------------------------------------------------------------


@dataclass
class _Layout:
    """One chart at one width; y grows downwards."""

    chart: Chart
    narrow: bool
    legend: list[Shape] = field(default_factory=list)
    top: float = 0.0

    @property
    def width(self) -> int:
        return NARROW if self.narrow else SHORT if self.chart.short else WIDE

    def drawing(self) -> Drawing:
        self._place_legend()
        shapes = (*self.legend, *self._frame(), *self._series())
        return Drawing(self.width, round(self.bottom + 44), shapes)

    # --- legend

    def _place_legend(self) -> None:
        """Put the legend above the plot, with as many entries per line as fit."""
        x, y = 2.0, 16.0
        shown = [s for s in self.chart.series if s.label]
        listed = shown if len(shown) > 1 else []
        for series in listed:
            words = short(series.label, 40 if self.narrow else 60)
            needed = 36 + text_width(words) + 18
            if x > 2 and x + needed > self.width:
                x, y = 2.0, y + 21
            self.legend += self._entry(series, words, x, y)
            x += needed
        self.top = y + 20 if listed else 8.0

    def _entry(self, series: ChartSeries, words: str, x: float, y: float) -> Iterator[Shape]:
        colour, k = colour_of(series.colour), series.colour
        if series.style == "bars":
            yield Area(((x, y - 9), (x + 26, y - 9), (x + 26, y), (x, y)), colour, 1.0, k)
        elif series.style in ("line", "steps"):
            yield Stroke(((x, y - 4.5), (x + 28, y - 4.5)), colour, 2.2, _dash(k), k)
        if series.style == "dots" or series.markers:
            yield Marker((x + 14, y - 4.5), MARKERS[k % SERIES], colour, 4.5, series=k)
        yield Label((x + 36, y), words, "ink", series=k)

    # --- plotting area

    @cached_property
    def row_height(self) -> float:
        return (46.0 if self.narrow else 30.0) + 7.0 * self._beside

    @cached_property
    def _beside(self) -> int:
        """One less than the largest number of series in one row."""
        per_row = [
            sum(any(not p.faint and p.y == row for p in s.points) for s in self.chart.series)
            for row in range(len(self.chart.rows))
        ]
        return max(0, max(per_row, default=1) - 1)

    @cached_property
    def left(self) -> float:
        if self.chart.rows:
            longest = max(text_width(self._row_words(row)) for row in self.chart.rows)
            return 6.0 if self.narrow else min(longest, 330.0) + 14
        widest = max((text_width(w, 12) for _, w in self.y_ticks), default=20.0)
        return widest + 10

    @cached_property
    def head(self) -> float:
        """Top of the plotting area; the label of a numeric y axis is above it."""
        return self.top if self.chart.rows else self.top + 22

    @cached_property
    def bottom(self) -> float:
        rows = len(self.chart.rows)
        if rows:
            return self.top + rows * self.row_height + 4
        return self.head + self.chart.height * (0.8 if self.narrow else 1.0)

    @cached_property
    def _points(self) -> list[Point]:
        return [p for s in self.chart.series for p in s.points]

    @cached_property
    def x(self) -> Scale:
        axis, values = self.chart.x, _values(self._points, "x")
        zero = [0.0] if any(s.style == "bars" for s in self.chart.series) else []
        low, high = _extent(axis, [*values, *zero, *self._guides("x")], 0.04)
        low = 0.0 if zero and min(values, default=0) >= 0 else low
        return Scale(low, high, self.left, self.width - 16.0, axis.log)

    @cached_property
    def _y_extent(self) -> tuple[float, float]:
        return _extent(self.chart.y, [*_values(self._points, "y"), *self._guides("y")], 0.06)

    @cached_property
    def y(self) -> Scale:
        low, high = self._y_extent
        return Scale(low, high, self.bottom, self.head, self.chart.y.log)

    @cached_property
    def y_ticks(self) -> list[tuple[float, str]]:
        return _ticks(self.chart.y, *self._y_extent, most=5)

    def _guides(self, which: str) -> list[float]:
        return [position for axis, position in self.chart.guides if axis == which]

    def _row_words(self, words: str) -> str:
        return short(words, 44 if self.narrow else 46)

    def _frame(self) -> Iterator[Shape]:
        right = self.width - 16.0
        if self.chart.rows:
            yield from self._row_labels(right)
        else:
            yield Label((0, self.top + 9), self.chart.y.label, "faint", size=12)
            for value, words in self.y_ticks:
                y = self.y(value)
                yield Stroke(((self.left, y), (right, y)), "line")
                yield Label((self.left - 7, y + 4), words, "faint", "end", 12)
        yield from self._x_axis(right)
        for axis, position in self.chart.guides:
            p = self.x(position) if axis == "x" else self.y(position)
            ends = (
                ((p, self.head), (p, self.bottom)) if axis == "x" else ((self.left, p), (right, p))
            )
            yield Stroke(ends, "faint", 1.0, (3, 3))

    def _x_axis(self, right: float) -> Iterator[Shape]:
        axis = self.chart.x
        room = max(2, int((right - self.left) / (70 if axis.tick is None else 84)))
        last = -1e9
        for value, words in _ticks(axis, self.x.low, self.x.high, min(room, 10)):
            x, half = self.x(value), text_width(words, 12) / 2
            yield Stroke(((x, self.head), (x, self.bottom)), "line")
            if x - half > last + 6:
                middle = min(max(x, half), self.width - half)
                yield Label((middle, self.bottom + 17), words, "faint", "middle", 12)
                last = middle + half
        yield Stroke(((self.left, self.bottom), (right, self.bottom)), "axis")
        centre = (self.left + right) / 2
        half = text_width(axis.label, 12) / 2
        centre = min(max(centre, half), max(self.width - half, self.width / 2))
        yield Label((centre, self.bottom + 37), axis.label, "faint", "middle", 12)

    def _row_labels(self, right: float) -> Iterator[Shape]:
        for row, words in enumerate(self.chart.rows):
            y = self._row_y(row)
            if not self.narrow:
                yield Stroke(((self.left, y), (right, y)), "line")
                yield Label((0, y + 4.5), self._row_words(words))
            else:
                yield Label((2, y - 13 - 3.5 * self._beside), self._row_words(words))

    def _row_y(self, row: float) -> float:
        middle = 0.66 if self.narrow else 0.5
        return self.top + (row + middle) * self.row_height

    # --- series

    def _series(self) -> Iterator[Shape]:
        for number, series in enumerate(self.chart.series):
            if series.points:
                yield from getattr(self, f"_{series.style}")(series, number)

    def _at(self, point: Point, number: int) -> Pixel:
        if not self.chart.rows:
            return self.x(point.x), self.y(point.y)
        if point.faint:
            return self.x(point.x), self._row_y(point.y) + 9 + 3.5 * self._beside
        return self.x(point.x), self._row_y(point.y) + self._offset(point, number)

    def _offset(self, point: Point, number: int) -> float:
        """Vertical offset in pixels: series that share a row are drawn one above the other."""
        sharing = [
            k
            for k, s in enumerate(self.chart.series)
            if any(p.y == point.y and not p.faint for p in s.points)
        ]
        return 0.0 if len(sharing) < 2 else 9.0 * (sharing.index(number) - (len(sharing) - 1) / 2)

    def _line(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        colour, k = colour_of(series.colour), series.colour
        pixels = [self._at(p, number) for p in series.points]
        if series.area:
            zero = self.y(min(self.y.high, max(self.y.low, 0.0)))
            ends = [(pixels[-1][0], zero), (pixels[0][0], zero)]
            yield Area((*pixels, *ends), colour, 0.06, k)
        band = [p for p in series.points if p.y_low is not None and p.y_high is not None]
        if len(band) > 1:
            upper = [(self.x(p.x), self.y(p.y_high or 0.0)) for p in band]
            lower = [(self.x(p.x), self.y(p.y_low or 0.0)) for p in reversed(band)]
            yield Area((*upper, *lower), colour, 0.14, k)
        yield Stroke(tuple(pixels), colour, 2.6 if series.bold else 1.7, _dash(k), k)
        yield from self._markers(series, number, 3.6 if series.markers else 0.0)

    def _steps(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        pixels: list[Pixel] = []
        for point in series.points:
            x, y = self._at(point, number)
            pixels += [(x, pixels[-1][1]), (x, y)] if pixels else [(x, y)]
        pixels.append((self.width - 16.0, pixels[-1][1]))
        k = series.colour
        yield Stroke(tuple(pixels), colour_of(k), 1.6, _dash(k), k)

    def _dots(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        yield from self._intervals(series, number)
        yield from self._markers(series, number, 5.2 if series.bold else 4.6)

    def _intervals(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        colour, k = colour_of(series.colour), series.colour
        for point in series.points:
            x, y = self._at(point, number)
            if point.x_low is not None and point.x_high is not None:
                ends = ((self.x(point.x_low), y), (self.x(point.x_high), y))
                yield Stroke(ends, colour, 2.2, series=k)
            if point.y_low is not None and point.y_high is not None:
                ends = ((x, self.y(point.y_low)), (x, self.y(point.y_high)))
                yield Stroke(ends, colour, 1.8, series=k)

    def _markers(self, series: ChartSeries, number: int, radius: float) -> Iterator[Shape]:
        k = series.colour
        base = Marker((0, 0), MARKERS[k % SERIES], colour_of(k), radius, series=k)
        for point in series.points:
            at = self._at(point, number)
            if point.faint:
                yield replace(base, at=at, shape="tick", colour="faint", radius=4.0, tip=point.tip)
            else:
                yield replace(base, at=at, tip=point.tip)

    def _bars(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        colour, k, zero = colour_of(series.colour), series.colour, self.x(0.0)
        for point in series.points:
            x, y = self._at(point, number)
            outline = ((zero, y - 7), (x, y - 7), (x, y + 7), (zero, y + 7))
            yield Area(outline, colour, 1.0, k)
            yield Marker((x, y), "circle", colour, 0.0, point.tip, k)


def _values(points: Sequence[Point], axis: str) -> list[float]:
    names = (axis, f"{axis}_low", f"{axis}_high")
    return [v for p in points for name in names if (v := getattr(p, name)) is not None]


def _dash(series: int) -> tuple[float, ...]:
    return DASHES[series % SERIES]
