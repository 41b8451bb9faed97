"""HTML elements from Python values: whatever is not an element already is escaped."""

from __future__ import annotations

from html import escape
from typing import TypeAlias


class Html(str):
    """Markup that is put into a page as it is."""

    __slots__ = ()


Child: TypeAlias = "Html | str | int | None"

VOID = frozenset({"meta", "br", "img", "link", "input"})


def element(tag: str, /, *children: Child, **attributes: str | int | None) -> Html:
    """`<tag attributes>children</tag>`.

    Strings are escaped, `None` is left out. A trailing underscore makes an attribute of a Python
    word (`class_`), another underscore becomes a hyphen (`data_sort`).

    >>> element("td", "<script>", class_="num")
    '<td class="num">&lt;script&gt;</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if tag in VOID else f"</{tag}>"
    return Html(f"<{tag}{written}>{join(*children)}{end}")


def join(*children: Child) -> Html:
    """Children one after the other, without an element around them."""
    return Html(
        "".join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None)
    )
