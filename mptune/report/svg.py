"""The shapes of a figure as SVG, inside a page or as a file, and as a PNG made from that SVG.

Positions are pixels, and y grows downwards. Colours are names: a page has a value for each name in
light mode and another one in dark mode. The PNG uses DejaVu Sans from `assets/` (a subset: Latin,
Greek, Cyrillic, mathematical signs), so that figures have text on machines without fonts; other
scripts need an installed font.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import ClassVar, Literal, TypeAlias

from markupsafe import Markup

from mptune.report.rendering import pixels, template

FONT = 13.0
"""Default size of text, in pixels."""

MARGIN = 12
"""Pixels around a drawing in an SVG file."""

SCALE = 2.0
"""Pixels of a PNG per pixel of the drawing."""

Pixel: TypeAlias = tuple[float, float]
MarkerShape: TypeAlias = Literal["circle", "square", "triangle", "diamond", "cross", "plus", "tick"]

OUTLINES: dict[MarkerShape, tuple[tuple[Pixel, ...], ...]] = {
    "square": (((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),),
    "triangle": (((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),),
    "diamond": (((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),),
    "cross": (((-0.9, -0.9), (0.9, 0.9)), ((-0.9, 0.9), (0.9, -0.9))),
    "plus": (((-1.1, 0), (1.1, 0)), ((0, -1.1), (0, 1.1))),
    "tick": (((0, -1), (0, 1)),),
}
"""Lines of a marker of radius 1 around the origin."""


# --- shapes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stroke:
    """A line through pixels."""

    kind: ClassVar = "stroke"
    pixels: tuple[Pixel, ...]
    colour: str
    width: float = 1.0
    dash: tuple[float, ...] = ()
    series: int | None = None


@dataclass(frozen=True)
class Area:
    """A filled outline."""

    kind: ClassVar = "area"
    pixels: tuple[Pixel, ...]
    colour: str
    opacity: float
    series: int | None = None


@dataclass(frozen=True)
class Marker:
    """A point whose `tip` is shown on hover; with radius 0 it is invisible until then."""

    kind: ClassVar = "marker"
    at: Pixel
    shape: MarkerShape
    colour: str
    radius: float
    tip: str = ""
    series: int | None = None

    @property
    def stroked(self) -> bool:
        """Whether it is drawn with lines and has no area."""
        return self.shape in ("cross", "plus", "tick")

    @property
    def path(self) -> str:
        """Its outline as the `d` of an SVG path."""
        (x, y), r = self.at, self.radius
        if self.shape == "circle" or r == 0:
            turn, back = (
                f"a{pixels(r, 1)} {pixels(r, 1)} 0 1 0 {pixels(d, 1)} 0" for d in (2 * r, -2 * r)
            )
            return f"M{pixels(x - r, 1)} {pixels(y, 1)}{turn}{back}z"
        lines = " ".join(
            f"{'L' if k else 'M'}{pixels(x + r * dx, 1)} {pixels(y + r * dy, 1)}"
            for line in OUTLINES[self.shape]
            for k, (dx, dy) in enumerate(line)
        )
        return lines + "z" * (not self.stroked)


@dataclass(frozen=True)
class Label:
    """A text; `at` is a pixel on its baseline."""

    kind: ClassVar = "label"
    at: Pixel
    words: str
    colour: str = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    size: float = FONT
    series: int | None = None


Shape: TypeAlias = Stroke | Area | Marker | Label


@dataclass(frozen=True)
class Drawing:
    """A chart laid out at one width."""

    width: int
    height: int
    shapes: tuple[Shape, ...]


# --- files ---------------------------------------------------------------------------------------


@cache
def palette() -> str:
    """CSS that gives the names of colours their values, for light and dark mode."""
    style = files("mptune.report").joinpath("assets", "report.css").read_text("utf-8")
    return style.partition("/* --- the page --- */")[0]


def document(drawing: Drawing, title: str) -> str:
    """An SVG file, in light or dark colours as the viewer prefers."""
    return template("drawing.svg").render(
        drawing=drawing, title=title, margin=MARGIN, palette=Markup(palette())
    )


def png(drawing: Drawing) -> bytes:
    """The drawing as a PNG in light colours."""
    values = dict(re.findall(r"--([\w-]+): (#\w+);", palette().partition("@media")[0]))
    light = re.sub(r"var\(--([\w-]+)\)", lambda found: values[found[1]], document(drawing, ""))
    return _rasterise(re.sub(r"<style>.*?</style>", "", light, flags=re.DOTALL))


@cache
def has_font_for(text: str) -> bool:
    """Whether the fonts of this machine have the two (different) characters of `text`."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><text y="20">'
    one, other = (_rasterise(f"{head}{sign}</text></svg>") for sign in text)
    return one != other


def _rasterise(svg: str) -> bytes:
    from resvg_py import svg_to_bytes

    with as_file(files("mptune.report").joinpath("assets", "DejaVuSans.ttf")) as font:
        return svg_to_bytes(
            svg_string=svg, zoom=SCALE, font_files=[str(font)], font_family="DejaVu Sans"
        )
