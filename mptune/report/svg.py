"""A drawing as SVG: for the body of a page, or as a file of its own."""

from __future__ import annotations

from functools import singledispatch

from mptune.report.layout import FONT, Area, Drawing, Label, Marker, MarkerShape, Pixel, Stroke
from mptune.report.markup import Html, element

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
"""Colour name -> its value in the light and in the dark."""


def palette_css() -> str:
    """The colours as custom properties, for the light and the dark."""
    light, dark = (
        "".join(f"--{name}:{values[k]};" for name, values in PALETTE.items()) for k in (0, 1)
    )
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def inline(drawing: Drawing, label: str) -> Html:
    """An element for a page, in the page's colours and font."""
    return element(
        "svg",
        *(shape_element(shape) for shape in drawing.shapes),
        viewBox=f"0 0 {drawing.width} {drawing.height}",
        role="img",
        aria_label=label,
        tabindex=0,
    )


def document(drawing: Drawing, title: str) -> str:
    """A file of its own, on the colours that whoever opens it prefers."""
    style = palette_css() + "text{font-family:system-ui,'Noto Sans CJK JP',sans-serif}"
    size = {"width": drawing.width + 24, "height": drawing.height + 24}
    canvas = element("rect", x=-12, y=-12, **size, style="fill:var(--paper)")
    body = element(
        "svg",
        element("title", title),
        element("style", Html(style)),
        canvas,
        *(shape_element(shape) for shape in drawing.shapes),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"-12 -12 {size['width']} {size['height']}",
        **size,
    )
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + body + "\n"


@singledispatch
def shape_element(shape: object) -> Html:
    """The SVG element of a shape."""
    raise TypeError(f"no SVG for a {type(shape).__name__}")


@shape_element.register
def _(shape: Stroke) -> Html:
    return element(
        "polyline",
        points=_pixels(shape.pixels),
        style=f"fill:none;stroke:var(--{shape.colour})",
        stroke_width=_number(shape.width),
        stroke_dasharray=" ".join(map(_number, shape.dash)) or None,
        stroke_linejoin="round",
        data_s=shape.series,
    )


@shape_element.register
def _(shape: Area) -> Html:
    return element(
        "polygon",
        points=_pixels(shape.pixels),
        style=f"fill:var(--{shape.colour})",
        fill_opacity=_number(shape.opacity) if shape.opacity < 1 else None,
        data_s=shape.series,
    )


@shape_element.register
def _(shape: Marker) -> Html:
    x, y = shape.at
    drawn = marker_path(shape.shape, x, y, shape.radius)
    stroked = shape.shape in ("cross", "plus", "tick")
    paint = "fill:none;stroke" if stroked else "fill"
    return element(
        "path",
        d=drawn,
        style=f"{paint}:var(--{shape.colour})",
        stroke_width=("1.3" if shape.shape == "tick" else "2.4") if stroked else None,
        data_s=shape.series,
        data_tip=shape.tip or None,
        data_x=_number(x) if shape.tip else None,
        data_y=_number(y) if shape.tip else None,
    )


@shape_element.register
def _(shape: Label) -> Html:
    x, y = shape.at
    return element(
        "text",
        shape.words,
        x=_number(x),
        y=_number(y),
        style=f"fill:var(--{shape.colour})",
        font_size=_number(shape.size) if shape.size != FONT else _number(FONT),
        text_anchor=shape.anchor if shape.anchor != "start" else None,
        font_weight=600 if shape.bold else None,
        data_s=shape.series,
    )


def marker_path(shape: MarkerShape, x: float, y: float, r: float) -> str:
    """Outline of a marker."""
    if shape == "circle" or r == 0:
        turn = f"a{_n(r)} {_n(r)} 0 1 0"
        return f"M{_n(x - r)} {_n(y)}{turn} {_n(2 * r)} 0{turn} {_n(-2 * r)} 0z"
    strokes = " ".join(
        ("M" if k == 0 else "L") + f"{_n(x + r * dx)} {_n(y + r * dy)}"
        for line in OUTLINES[shape]
        for k, (dx, dy) in enumerate(line)
    )
    return strokes if shape in ("cross", "plus", "tick") else strokes + "z"


OUTLINES: dict[str, tuple[tuple[Pixel, ...], ...]] = {
    "square": (((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),),
    "triangle": (((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),),
    "diamond": (((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),),
    "cross": (((-0.9, -0.9), (0.9, 0.9)), ((-0.9, 0.9), (0.9, -0.9))),
    "plus": (((-1.1, 0), (1.1, 0)), ((0, -1.1), (0, 1.1))),
    "tick": (((0, -1), (0, 1)),),
}
"""Lines of a marker of radius 1 around zero."""


def _pixels(pixels: tuple[Pixel, ...]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in pixels)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _n(value: float) -> str:
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
