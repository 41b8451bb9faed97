"""The Jinja templates of the report: how they escape what they insert, and their filters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from mptune.report.formatting import per_token, power


@cache
def template(name: str) -> Template:
    """A template by its file name; what it inserts is escaped for HTML and SVG or for Markdown."""
    escaping: dict[str, Any] = (
        {"finalize": escape_markdown} if name.endswith(".md") else {"autoescape": True}
    )
    environment = Environment(
        loader=PackageLoader("mptune.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **escaping,
    )
    environment.filters |= {"prose": prose, "code": code, "px": pixels, "points": points}
    environment.filters |= {"f": format, "power": power}
    environment.globals["per_token"] = per_token
    return environment.get_template(name)


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is: no HTML, no emphasis, no end of a table cell."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", str(value)).replace("\n", " ")


def prose(text: str) -> str:
    """Text whose lines do not break between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def code(text: str) -> Markup:
    """HTML of a text in which backticks enclose code."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def pixels(value: float, digits: int = 2) -> str:
    """A length without trailing zeros."""
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def points(places: Iterable[tuple[float, float]]) -> str:
    """Pixels as an attribute of a line."""
    return " ".join(f"{pixels(x, 1)},{pixels(y, 1)}" for x, y in places)
