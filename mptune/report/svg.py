"""A drawing as SVG, inside a page or as a file, and as a PNG made from that SVG.

The PNG uses DejaVu Sans from `assets/` (a subset: Latin, Greek, Cyrillic, mathematical signs), so
that figures have text on machines without fonts; other scripts need an installed font.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import as_file, files
from typing import Any, TypeAlias

from markupsafe import Markup

from mptune.report.drawing import Area, Drawing, Label, Marker, MarkerShape, Pixel, Shape, Stroke
from mptune.report.templates import template

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

MARGIN = 12
"""Pixels around a drawing in an SVG file."""

SCALE = 2.0
"""Pixels of a PNG per pixel of the drawing."""

OUTLINES: dict[MarkerShape, tuple[tuple[Pixel, ...], ...]] = {
    "square": (((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),),
    "triangle": (((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),),
    "diamond": (((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),),
    "cross": (((-0.9, -0.9), (0.9, 0.9)), ((-0.9, 0.9), (0.9, -0.9))),
    "plus": (((-1.1, 0), (1.1, 0)), ((0, -1.1), (0, 1.1))),
    "tick": (((0, -1), (0, 1)),),
}
"""Lines of a marker of radius 1 around the origin."""

Element: TypeAlias = tuple[str, dict[str, Any], str]
"""Tag, attributes, text; an attribute that is None is left out."""


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
    head: list[Element] = [("title", {}, title), ("style", {}, style), ("rect", canvas, "")]
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


def _svg(drawing: Drawing, attributes: dict[str, Any], head: list[Element] | None = None) -> Markup:
    elements = [*(head or ()), *map(_element, drawing.shapes)]
    return Markup(template("figure.svg").render(attributes=attributes, elements=elements))


def _element(shape: Shape) -> Element:
    paint = f"var(--{shape.colour})"
    series = {"data-s": shape.series}
    match shape:
        case Stroke():
            return "polyline", {
                "points": _points(shape.pixels),
                "style": f"fill:none;stroke:{paint}",
                "stroke-width": _number(shape.width),
                "stroke-dasharray": " ".join(map(_number, shape.dash)) or None,
                "stroke-linejoin": "round",
                **series,
            }, ""  # fmt: skip
        case Area():
            opacity = _number(shape.opacity) if shape.opacity < 1 else None
            points = _points(shape.pixels)
            style = f"fill:{paint}"
            return (
                "polygon",
                {"points": points, "style": style, "fill-opacity": opacity} | series,
                "",
            )
        case Marker():
            x, y = shape.at
            stroked = shape.shape in ("cross", "plus", "tick")
            return "path", {
                "d": _path(shape.shape, x, y, shape.radius),
                "style": f"fill:none;stroke:{paint}" if stroked else f"fill:{paint}",
                "stroke-width": ("1.3" if shape.shape == "tick" else "2.4") if stroked else None,
                **series,
                "data-tip": shape.tip or None,
                "data-x": _number(x) if shape.tip else None,
                "data-y": _number(y) if shape.tip else None,
            }, ""  # fmt: skip
        case Label():
            return "text", {
                "x": _number(shape.at[0]),
                "y": _number(shape.at[1]),
                "style": f"fill:{paint}",
                "font-size": _number(shape.size),
                "text-anchor": shape.anchor if shape.anchor != "start" else None,
                **series,
            }, shape.words  # fmt: skip


def _path(shape: MarkerShape, x: float, y: float, r: float) -> str:
    """Outline of a marker."""
    if shape == "circle" or r == 0:
        turn = f"a{_number(r, 1)} {_number(r, 1)} 0 1 0"
        return (
            f"M{_number(x - r, 1)} {_number(y, 1)}"
            f"{turn} {_number(2 * r, 1)} 0{turn} {_number(-2 * r, 1)} 0z"
        )
    lines = " ".join(
        f"{'L' if k else 'M'}{_number(x + r * dx, 1)} {_number(y + r * dy, 1)}"
        for line in OUTLINES[shape]
        for k, (dx, dy) in enumerate(line)
    )
    return lines if shape in ("cross", "plus", "tick") else lines + "z"


def _points(pixels: tuple[Pixel, ...]) -> str:
    return " ".join(f"{_number(x, 1)},{_number(y, 1)}" for x, y in pixels)


def _number(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
