"""Where shapes are placed: scales, ticks, rows; and that every back end draws them."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import resvg_py
from PIL import Image

from mptune.analysis.results import Report
from mptune.report.blocks import (
    Axis,
    Chart,
    ChartSeries,
    Point,
    number_tick,
    percent_tick,
    power_tick,
)
from mptune.report.language import language
from mptune.report.layout import NARROW, SERIES, WIDE, lay_out
from mptune.report.sections import sections
from mptune.report.sections.context import Context
from mptune.report.svg import (
    Area,
    Drawing,
    Label,
    Marker,
    Stroke,
    document,
    has_font_for,
    png,
)

LINE = Chart(
    name="line",
    title="a line",
    caption="",
    x=Axis("x", low=0.0, high=1.0, tick=percent_tick),
    y=Axis("y"),
    series=(
        ChartSeries("first", tuple(Point(x, x * x, f"{x}", x * x - 0.1, x * x + 0.1)
                              for x in (0.0, 0.5, 1.0))),
        ChartSeries("second", (Point(0.0, 1.0), Point(1.0, 0.0)), 1),
    ),
)  # fmt: skip

ROWS = Chart(
    name="rows",
    title="rows",
    caption="",
    x=Axis("x"),
    y=Axis(""),
    series=(ChartSeries("", (Point(1.0, 0, "a", 0.5, 1.5), Point(2.0, 1, "b")), style="dots"),),
    rows=("first row", "second row"),
    guides=(("x", 0.0),),
)


def markers(chart: Chart, narrow: bool = False) -> list[Marker]:
    return [s for s in lay_out(chart, narrow).shapes if isinstance(s, Marker) and s.tip]


def test_points_stand_in_order() -> None:
    xs, ys = zip(*(marker.at for marker in markers(LINE)), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)  # y grows downwards
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2)


def test_rows_are_below_each_other_and_labelled() -> None:
    first, second = markers(ROWS)
    assert first.at[1] < second.at[1]
    labels = {s.words: s.at for s in lay_out(ROWS).shapes if isinstance(s, Label)}
    assert labels["first row"][1] == pytest.approx(first.at[1], abs=6)


@pytest.mark.parametrize(("narrow", "width"), [(False, WIDE), (True, NARROW)])
def test_everything_is_on_the_canvas(everything: Report, narrow: bool, width: int) -> None:
    for section in sections(Context(everything, language())):
        for chart in section.charts:
            drawing = lay_out(replace(chart, short=False), narrow)
            assert drawing.width == width
            for shape in drawing.shapes:
                pixels = shape.pixels if isinstance(shape, Stroke | Area) else (shape.at,)
                found = np.array(pixels)
                assert np.isfinite(found).all(), chart.name
                assert (found >= -8).all(), chart.name
                assert (found <= (width + 8, drawing.height + 8)).all(), chart.name


def test_a_band_and_a_legend_are_drawn() -> None:
    shapes = lay_out(LINE).shapes
    assert [s for s in shapes if isinstance(s, Area) and s.opacity < 1]
    assert {"first", "second"} <= {s.words for s in shapes if isinstance(s, Label)}


def test_series_differ_without_colour() -> None:
    many = tuple(
        ChartSeries(f"s{k}", (Point(0, k), Point(1, k)), k, markers=True) for k in range(SERIES)
    )
    shapes = lay_out(replace(LINE, series=many)).shapes
    dashes = {s.dash for s in shapes if isinstance(s, Stroke) and s.colour.startswith("series")}
    assert len(dashes) == SERIES
    assert len({s.shape for s in shapes if isinstance(s, Marker)}) == SERIES


def test_a_log_axis_leaves_out_what_it_cannot_show() -> None:
    points = (Point(0.0, 1.0, "never"), Point(1e3, 1.0, "a"), Point(1e6, 2.0, "b"))
    chart = replace(LINE, x=Axis("x", log=True), series=(ChartSeries("", points),))
    xs = [marker.at[0] for marker in markers(chart)]
    assert xs[1] < xs[2]
    assert np.isfinite(xs).all()


def test_one_point_alone_has_axes() -> None:
    chart = replace(
        LINE, x=Axis("x"), series=(ChartSeries("", (Point(3.0, 5.0, "p"),), style="dots"),)
    )
    (marker,) = markers(chart)
    assert 0 < marker.at[0] < WIDE


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (percent_tick(0.15), "15 %"),
        (power_tick(3e12), "3×10¹²"),
        (power_tick(1e9), "10⁹"),
        (power_tick(8.5e10), "8.5×10¹⁰"),
        (number_tick(0.25)(-1.5), "−1.50"),
        (number_tick(10.0)(40.0), "40"),
    ],
)
def test_tick_words(words: str, expected: str) -> None:
    assert words == expected


def test_svg_is_a_file_of_its_own() -> None:
    text = document(lay_out(LINE), "a <line>")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "&lt;line&gt;" in text
    assert all(text.count(f"--series-{k}: #") == 2 for k in range(1, SERIES + 1)), "light and dark"


@pytest.mark.parametrize("chart", [LINE, ROWS], ids=["line", "rows"])
def test_png_shows_the_series(chart: Chart) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(png(lay_out(chart)))).convert("RGB"), int)
    assert (np.abs(pixels - (0, 0x72, 0xB2)).max(-1) < 12).sum() > 30
    assert (pixels[:5] == 255).all()


def test_png_has_text_without_a_font_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_fonts(**options: Any) -> bytes:
        return bytes(resvg_py.svg_to_bytes(**options, skip_system_fonts=True))

    alone = SimpleNamespace(svg_to_bytes=without_fonts)
    monkeypatch.setitem(sys.modules, "resvg_py", alone)
    words = Drawing(200, 40, (Label((10, 20), "−1.65 ± 0.03 · 3×10¹² ω(M) → 15 %"),))
    pixels = np.asarray(Image.open(io.BytesIO(png(words))).convert("L"), int)
    assert (pixels < 128).sum() > 300
    assert has_font_for.__wrapped__("En")
    assert not has_font_for.__wrapped__("日本")
