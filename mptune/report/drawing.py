"""The shapes that a figure consists of, in pixels; y grows downwards. Colours are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FONT = 13.0
"""Default size of text, in pixels."""

MarkerShape: TypeAlias = Literal["circle", "square", "triangle", "diamond", "cross", "plus", "tick"]
Anchor: TypeAlias = Literal["start", "middle", "end"]
Pixel: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """A line through pixels."""

    pixels: tuple[Pixel, ...]
    colour: str
    width: float = 1.0
    dash: tuple[float, ...] = ()
    series: int | None = None


@dataclass(frozen=True)
class Area:
    """A filled outline."""

    pixels: tuple[Pixel, ...]
    colour: str
    opacity: float
    series: int | None = None


@dataclass(frozen=True)
class Marker:
    """A point whose `tip` is shown on hover; with radius 0 it is invisible until then."""

    at: Pixel
    shape: MarkerShape
    colour: str
    radius: float
    tip: str = ""
    series: int | None = None


@dataclass(frozen=True)
class Label:
    """A text; `at` is a pixel on its baseline."""

    at: Pixel
    words: str
    colour: str = "ink"
    anchor: Anchor = "start"
    size: float = FONT
    series: int | None = None


Shape: TypeAlias = Stroke | Area | Marker | Label


@dataclass(frozen=True)
class Drawing:
    """A chart laid out at one width."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
