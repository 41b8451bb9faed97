"""The shapes of a figure as SVG, inside a page or as a file, and as a PNG made from that SVG.

Positions are pixels, and y grows downwards. Colours are names: a page has a value for each name in
light mode and another one in dark mode. The PNG uses DejaVu Sans from `assets/` (a subset: Latin,
Greek, Cyrillic, mathematical signs), so that figures have text on machines without fonts; other
scripts need an installed font.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any, Literal, TypeAlias

from markupsafe import Markup

PALETTE = {
    "ink": ("#1c2430", "#e7ebf0"),
    "faint": ("#66707f", "#929dab"),
    "line": ("#e6e9ee", "#2a323c"),
    "axis": ("#aab2bd", "#55606d"),
    "paper": ("#ffffff", "#191f27"),
    "series-1": ("#0072b2", "#4aa8e0"),
    "series-2": ("#d55e00", "#f08a4b"),
    "series-3": ("#009e73", "#36c79a"),
    "series-4": ("#c0588f", "#e39ac6"),
    "series-5": ("#b87e00", "#f0b93a"),
    "series-6": ("#3a9fd6", "#8fd0f5"),
}
"""Colour name -> its value in light mode and in dark mode."""

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

    pixels: tuple[Pixel, ...]
    colour: str
    width: float = 1.0
    dash: tuple[float, ...] = ()
    series: int | None = None

    def element(self) -> Markup:
        return _element("polyline", {
            "points": _points(self.pixels),
            "style": f"fill:none;stroke:var(--{self.colour})",
            "stroke-width": _number(self.width),
            "stroke-dasharray": " ".join(map(_number, self.dash)) or None,
            "stroke-linejoin": "round",
            "data-s": self.series,
        })  # fmt: skip


@dataclass(frozen=True)
class Area:
    """A filled outline."""

    pixels: tuple[Pixel, ...]
    colour: str
    opacity: float
    series: int | None = None

    def element(self) -> Markup:
        return _element("polygon", {
            "points": _points(self.pixels),
            "style": f"fill:var(--{self.colour})",
            "fill-opacity": _number(self.opacity) if self.opacity < 1 else None,
            "data-s": self.series,
        })  # fmt: skip


@dataclass(frozen=True)
class Marker:
    """A point whose `tip` is shown on hover; with radius 0 it is invisible until then."""

    at: Pixel
    shape: MarkerShape
    colour: str
    radius: float
    tip: str = ""
    series: int | None = None

    def element(self) -> Markup:
        paint, stroked = f"var(--{self.colour})", self.shape in ("cross", "plus", "tick")
        x, y = map(_number, self.at) if self.tip else (None, None)
        return _element("path", {
            "d": self._path() + "z" * (not stroked or self.radius == 0),
            "style": f"fill:none;stroke:{paint}" if stroked else f"fill:{paint}",
            "stroke-width": ("1.3" if self.shape == "tick" else "2.4") if stroked else None,
            "data-s": self.series,
            "data-tip": self.tip or None,
            "data-x": x,
            "data-y": y,
        })  # fmt: skip

    def _path(self) -> str:
        (x, y), r = self.at, self.radius
        if self.shape == "circle" or r == 0:
            turn = f"a{_number(r, 1)} {_number(r, 1)} 0 1 0"
            start = f"M{_number(x - r, 1)} {_number(y, 1)}"
            return f"{start}{turn} {_number(2 * r, 1)} 0{turn} {_number(-2 * r, 1)} 0"
        return " ".join(
            f"{'L' if k else 'M'}{_number(x + r * dx, 1)} {_number(y + r * dy, 1)}"
            for line in OUTLINES[self.shape]
            for k, (dx, dy) in enumerate(line)
        )


@dataclass(frozen=True)
class Label:
    """A text; `at` is a pixel on its baseline."""

    at: Pixel
    words: str
    colour: str = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    size: float = FONT
    series: int | None = None

    def element(self) -> Markup:
        x, y = map(_number, self.at)
        return _element("text", {
            "x": x,
            "y": y,
            "style": f"fill:var(--{self.colour})",
            "font-size": _number(self.size),
            "text-anchor": self.anchor if self.anchor != "start" else None,
            "data-s": self.series,
        }, self.words)  # fmt: skip


Shape: TypeAlias = Stroke | Area | Marker | Label


@dataclass(frozen=True)
class Drawing:
    """A chart laid out at one width."""

    width: int
    height: int
    shapes: tuple[Shape, ...]


# --- files ---------------------------------------------------------------------------------------


def palette_css() -> str:
    """The colours as CSS custom properties, for light and dark mode."""
    light, dark = (
        "".join(f"--{name}:{values[k]};" for name, values in PALETTE.items()) for k in (0, 1)
    )
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def inline(drawing: Drawing, label: str, **attributes: Any) -> Markup:
    """An `<svg>` element with the colours and the font of the page around it."""
    box = {"viewBox": f"0 0 {drawing.width} {drawing.height}", "role": "img", "aria-label": label}
    return _svg(drawing, {**box, **attributes})


def document(drawing: Drawing, title: str) -> str:
    """An SVG file, in light or dark colours as the viewer prefers."""
    style = palette_css() + "text{font-family:system-ui,'Noto Sans CJK JP',sans-serif}"
    size = {"width": drawing.width + 2 * MARGIN, "height": drawing.height + 2 * MARGIN}
    box = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"{-MARGIN} {-MARGIN} {size['width']} {size['height']}",
        **size,
    }
    canvas = {"x": -MARGIN, "y": -MARGIN, **size, "style": "fill:var(--paper)"}
    head = _element("title", {}, title) + _element("style", {}, style) + _element("rect", canvas)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_svg(drawing, box, head)}\n'


def png(drawing: Drawing) -> bytes:
    """The drawing as a PNG in light colours."""
    light = re.sub(r"var\(--([\w-]+)\)", lambda m: PALETTE[m[1]][0], document(drawing, ""))
    return _rasterise(re.sub(r"<style>.*?</style>", "", light))


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


def _svg(drawing: Drawing, attributes: Mapping[str, Any], head: str = "") -> Markup:
    shapes = Markup().join(shape.element() for shape in drawing.shapes)
    return _element("svg", attributes, head + shapes)


def _element(tag: str, attributes: Mapping[str, Any], inside: str = "") -> Markup:
    """An element, escaped; an attribute that is None is left out."""
    given = [Markup(' {}="{}"').format(k, v) for k, v in attributes.items() if v is not None]
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup().join(given), inside)


def _points(pixels: tuple[Pixel, ...]) -> str:
    return " ".join(f"{_number(x, 1)},{_number(y, 1)}" for x, y in pixels)


def _number(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
