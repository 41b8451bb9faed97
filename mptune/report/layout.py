"""The layout of a chart: the position of every shape on a canvas of pixels.

Colours are names: the page has a value for each name in light mode and another in dark mode. Series
differ by dash and by marker as well as by colour, so that they can be told apart with colour
blindness and in grey print (palette: Okabe and Ito 2008).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mptune.report.blocks import Axis, Chart, ChartSeries, Point, number_tick, power_tick, short
from mptune.report.svg import (
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

    def __post_init__(self) -> None:
        chart, narrow = self.chart, self.narrow
        self.width = NARROW if narrow else SHORT if chart.short else WIDE
        self.right = self.width - 16.0
        self.legend, self.top = self._legend()
        points = [p for s in chart.series for p in s.points]
        ends = [end for p in points for end in (p.low, p.high) if end is not None]
        ys = [p.y for p in points] + ([] if chart.rows else ends)
        low, high = _extent(chart.y, [*ys, *self._guides("y")], 0.06)
        self.y_ticks = _ticks(chart.y, low, high, most=5)
        self.sharing = [
            [
                k
                for k, s in enumerate(chart.series)
                if any(p.y == y and not p.faint for p in s.points)
            ]
            for y in range(len(chart.rows))
        ]
        self.beside = max(0, max(map(len, self.sharing), default=1) - 1)
        self.row_height = (46.0 if narrow else 30.0) + 7.0 * self.beside
        self.rows = [short(row, 44 if narrow else 46) for row in chart.rows]
        if chart.rows:
            longest = max(map(text_width, self.rows))
            self.left = 6.0 if narrow else min(longest, 330.0) + 14
            self.head = self.top
            self.bottom = self.top + len(chart.rows) * self.row_height + 4
        else:
            self.left = max((text_width(w, 12) for _, w in self.y_ticks), default=20.0) + 10
            self.head = self.top + 22  # the label of the y axis is above the plot
            self.bottom = self.head + chart.height * (0.8 if narrow else 1.0)
        self.y = Scale(low, high, self.bottom, self.head, chart.y.log)
        xs = [p.x for p in points] + (ends if chart.rows else [])
        zero = [0.0] if any(s.style == "bars" for s in chart.series) else []
        low, high = _extent(chart.x, [*xs, *zero, *self._guides("x")], 0.04)
        low = 0.0 if zero and min(xs, default=0) >= 0 else low
        self.x = Scale(low, high, self.left, self.right, chart.x.log)

    def drawing(self) -> Drawing:
        series = (shape for k, s in enumerate(self.chart.series) for shape in self._series(s, k))
        return Drawing(self.width, round(self.bottom + 44), (*self.legend, *self._frame(), *series))

    def _guides(self, which: str) -> list[float]:
        return [position for axis, position in self.chart.guides if axis == which]

    def _legend(self) -> tuple[list[Shape], float]:
        """The legend, with as many entries per line as fit, and its lower end."""
        shown = [s for s in self.chart.series if s.label]
        if len(shown) < 2:
            return [], 8.0
        x, y, found = 2.0, 16.0, list[Shape]()
        for series in shown:
            words = short(series.label, 40 if self.narrow else 60)
            needed = 36 + text_width(words) + 18
            if x > 2 and x + needed > self.width:
                x, y = 2.0, y + 21
            colour, k = colour_of(series.colour), series.colour
            if series.style == "bars":
                found += [Area(((x, y - 9), (x + 26, y - 9), (x + 26, y), (x, y)), colour, 1.0, k)]
            elif series.style in ("line", "steps"):
                found += [Stroke(((x, y - 4.5), (x + 28, y - 4.5)), colour, 2.2, _dash(k), k)]
            if series.style == "dots" or series.markers:
                found += [Marker((x + 14, y - 4.5), MARKERS[k % SERIES], colour, 4.5, series=k)]
            found += [Label((x + 36, y), words, "ink", series=k)]
            x += needed
        return found, y + 20

    # --- plotting area

    def _frame(self) -> Iterator[Shape]:
        left, right, head, bottom = self.left, self.right, self.head, self.bottom
        for row, words in enumerate(self.rows):
            y = self._row_y(row)
            if self.narrow:
                yield Label((2, y - 13 - 3.5 * self.beside), words)
            else:
                yield Stroke(((left, y), (right, y)), "line")
                yield Label((0, y + 4.5), words)
        if not self.rows:
            yield Label((0, self.top + 9), self.chart.y.label, "faint", size=12)
            for value, words in self.y_ticks:
                y = self.y(value)
                yield Stroke(((left, y), (right, y)), "line")
                yield Label((left - 7, y + 4), words, "faint", "end", 12)
        axis, last = self.chart.x, -1e9
        most = max(2, int((right - left) / (70 if axis.tick is None else 84)))
        for value, words in _ticks(axis, self.x.low, self.x.high, min(most, 10)):
            x, half = self.x(value), text_width(words, 12) / 2
            yield Stroke(((x, head), (x, bottom)), "line")
            if x - half > last + 6:
                middle = min(max(x, half), self.width - half)
                yield Label((middle, bottom + 17), words, "faint", "middle", 12)
                last = middle + half
        yield Stroke(((left, bottom), (right, bottom)), "axis")
        half = text_width(axis.label, 12) / 2
        centre = min(max((left + right) / 2, half), max(self.width - half, self.width / 2))
        yield Label((centre, bottom + 37), axis.label, "faint", "middle", 12)
        for which, position in self.chart.guides:
            p = self.x(position) if which == "x" else self.y(position)
            ends = ((p, head), (p, bottom)) if which == "x" else ((left, p), (right, p))
            yield Stroke(ends, "faint", 1.0, (3, 3))

    def _row_y(self, row: float) -> float:
        return self.top + (row + (0.66 if self.narrow else 0.5)) * self.row_height

    # --- series

    def _series(self, series: ChartSeries, number: int) -> Iterator[Shape]:
        points, k, colour = series.points, series.colour, colour_of(series.colour)
        pixels = [self._at(point, number) for point in points]
        radius = 0.0
        match series.style:
            case _ if not points:
                return
            case "line":
                yield from self._areas(series, pixels)
                yield Stroke(tuple(pixels), colour, 2.6 if series.bold else 1.7, _dash(k), k)
                radius = 3.6 if series.markers else 0.0
            case "steps":
                corners = [pixels[0]]
                for x, y in pixels[1:]:
                    corners += [(x, corners[-1][1]), (x, y)]
                corners.append((self.right, corners[-1][1]))
                yield Stroke(tuple(corners), colour, 1.6, _dash(k), k)
                return
            case "dots":
                yield from self._intervals(series, pixels)
                radius = 5.2 if series.bold else 4.6
        for point, (x, y) in zip(points, pixels, strict=True):
            marker = Marker((x, y), MARKERS[k % SERIES], colour, radius, point.tip, k)
            if series.style == "bars":
                zero = self.x(0.0)
                outline = ((zero, y - 7), (x, y - 7), (x, y + 7), (zero, y + 7))
                yield Area(outline, colour, 1.0, k)
                marker = replace(marker, shape="circle")
            yield (
                replace(marker, shape="tick", colour="faint", radius=4.0) if point.faint else marker
            )

    def _at(self, point: Point, number: int) -> Pixel:
        """The pixel of a point of a series; series that share a row are one above the other."""
        if not self.rows:
            return self.x(point.x), self.y(point.y)
        y = self._row_y(point.y)
        if point.faint:
            return self.x(point.x), y + 9 + 3.5 * self.beside
        sharing = self.sharing[int(point.y)]
        return self.x(point.x), y + 9.0 * (sharing.index(number) - (len(sharing) - 1) / 2)

    def _areas(self, series: ChartSeries, pixels: list[Pixel]) -> Iterator[Shape]:
        """The area between a line and zero, and the band of its intervals."""
        colour, k = colour_of(series.colour), series.colour
        if series.area:
            zero = self.y(min(self.y.high, max(self.y.low, 0.0)))
            yield Area((*pixels, (pixels[-1][0], zero), (pixels[0][0], zero)), colour, 0.06, k)
        band = [
            (self.x(p.x), self.y(p.low), self.y(p.high))
            for p in series.points
            if p.low is not None and p.high is not None
        ]
        if len(band) > 1:
            upper, lower = ([(x, high) for x, _, high in band], [(x, low) for x, low, _ in band])
            yield Area((*upper, *reversed(lower)), colour, 0.14, k)

    def _intervals(self, series: ChartSeries, pixels: list[Pixel]) -> Iterator[Shape]:
        colour, k = colour_of(series.colour), series.colour
        for point, (x, y) in zip(series.points, pixels, strict=True):
            if point.low is not None and point.high is not None:
                if self.rows:
                    ends = (self.x(point.low), y), (self.x(point.high), y)
                else:
                    ends = (x, self.y(point.low)), (x, self.y(point.high))
                yield Stroke(ends, colour, 2.2 if self.rows else 1.8, series=k)


def _dash(series: int) -> tuple[float, ...]:
    return DASHES[series % SERIES]
