"""A drawing as PNG on white, for documents that take no SVG."""

from __future__ import annotations

import io
from functools import cache, singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mptune.report.layout import Area, Drawing, Label, Marker, Stroke
from mptune.report.svg import OUTLINES, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 100
SCALE = 1.6
"""Pixels of the file for one of the drawing."""

CJK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "IPAGothic", "IPAexGothic", "IPAPGothic", "VL Gothic",
    "Hiragino Sans", "Yu Gothic", "Meiryo", "TakaoGothic", "WenQuanYi Zen Hei",
)  # fmt: skip

CJK_FILES = ("notosanscjk", "notosansjp", "ipag", "ipaexg", "vl-gothic", "takaogothic")


@cache
def cjk_font() -> str | None:
    """A font of this machine that has Japanese characters, or None."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    found = next((name for name in CJK_FONTS if name in known), None)
    return found or _new_font()


def _new_font() -> str | None:
    """One that was installed after matplotlib last looked."""
    from matplotlib import font_manager

    for path in sorted(font_manager.findSystemFonts()):
        if Path(path).stem.lower().startswith(CJK_FILES):
            font_manager.fontManager.addfont(path)
            return font_manager.FontProperties(fname=path).get_name()
    return None


def can_write(language: str) -> bool:
    """Whether a PNG can have this language's words here."""
    return language != "ja" or cjk_font() is not None


def png(drawing: Drawing, margin: int = 12) -> bytes:
    """The drawing as a PNG on white."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width, height = drawing.width + 2 * margin, drawing.height + 2 * margin
    families = ["DejaVu Sans", *([font] if (font := cjk_font()) else [])]
    with mpl.rc_context({"font.family": families, "text.parse_math": False}):
        canvas = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * SCALE)
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(-margin, width - margin), ylim=(height - margin, -margin))
        for order, shape in enumerate(drawing.shapes):
            _draw(shape, axes, order)
        out = io.BytesIO()
        canvas.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _colour(name: str) -> str:
    return PALETTE[name][0]


def _points(pixels: float) -> float:
    return pixels * 72 / DPI


@singledispatch
def _draw(shape: object, axes: Axes, order: int) -> None:
    raise TypeError(f"no PNG of a {type(shape).__name__}")


@_draw.register(Stroke)
def _(shape: Stroke, axes: Axes, order: int) -> None:
    xs, ys = zip(*shape.pixels, strict=True)
    style: Any = (0, [d / shape.width for d in shape.dash]) if shape.dash else "-"
    axes.plot(xs, ys, color=_colour(shape.colour), lw=_points(shape.width), ls=style, zorder=order)


@_draw.register(Area)
def _(shape: Area, axes: Axes, order: int) -> None:
    xs, ys = zip(*shape.pixels, strict=True)
    axes.fill(xs, ys, color=_colour(shape.colour), alpha=shape.opacity, lw=0, zorder=order)


@_draw.register(Marker)
def _(shape: Marker, axes: Axes, order: int) -> None:
    if not shape.radius:
        return
    (x, y), r, colour = shape.at, shape.radius, _colour(shape.colour)
    if shape.shape == "circle":
        axes.plot([x], [y], "o", color=colour, ms=_points(2 * r), mew=0, zorder=order)
    for line in OUTLINES.get(shape.shape, ()):
        xs, ys = [x + r * dx for dx, _ in line], [y + r * dy for _, dy in line]
        if len(line) > 2:
            axes.fill(xs, ys, color=colour, lw=0, zorder=order)
        else:
            width = _points(1.3 if shape.shape == "tick" else 2.4)
            axes.plot(xs, ys, color=colour, lw=width, zorder=order)


@_draw.register(Label)
def _(shape: Label, axes: Axes, order: int) -> None:
    align = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
    axes.text(
        *shape.at,
        shape.words,
        color=_colour(shape.colour),
        fontsize=_points(shape.size),
        ha=align,
        va="baseline",
        zorder=order,
        fontweight="bold" if shape.bold else "normal",
    )
