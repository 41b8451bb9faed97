"""report.html: whole, self-contained, escaped, and there whatever the study found."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mptune.analysis.results import Report
from mptune.paths import RunDirectory
from mptune.report import write
from mptune.report.language import language
from mptune.report.pages import page
from mptune.report.rendering import code
from mptune.report.sections import SECTIONS
from tests.report.conftest import make, search

VOID = frozenset({"meta", "br", "img", "link", "input"})

EVIL = "<script>alert('x')</script>\"&$x_1$"


class Reader(HTMLParser):
    """Checks that tags are closed in order, and gathers identifiers, links and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self._attributes(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(dict(attrs))

    def _attributes(self, attributes: dict[str, str | None]) -> None:
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.links += [str(attributes[k]) for k in ("src", "href") if k in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(report: Report, code: str = "en") -> tuple[str, Reader]:
    text, reader = page(report, language(code)).replace("\u00a0", " "), Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return text, reader


@pytest.fixture(scope="module")
def whole(everything: Report) -> tuple[str, Reader]:
    return read(everything)


def test_first_screen_has_the_answer(whole: tuple[str, Reader]) -> None:
    text, _ = whole
    above = text[text.index("<body") : text.index("<nav")]
    for words in ("Recommendation", "accumulated is better", "How certain", "What it cost",
                  "Before you adopt it", "loss at 15 % masking picks fixed 15 %"):  # fmt: skip
        assert words in above


def test_no_request_leaves_the_page(whole: tuple[str, Reader]) -> None:
    text, reader = whole
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", markup)
    assert all(link.startswith(("#", "data:,")) for link in reader.links)
    assert """content="default-src 'none'; style""" in whole[0]


def test_identifiers_are_unique_and_references_resolve(whole: tuple[str, Reader]) -> None:
    text, reader = whole
    assert len(reader.ids) == len(set(reader.ids))
    referred = set(re.findall(r'href="#([^"]+)"', text))
    assert "ranking" in referred
    assert referred <= set(reader.ids)


def test_size(whole: tuple[str, Reader]) -> None:
    text, _ = whole
    assert len(text.encode()) < 3_000_000


def test_figures_take_the_colours_of_the_page(whole: tuple[str, Reader]) -> None:
    text, _ = whole
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "var(--series-1)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("code", ["en", "ja"])
def test_every_section_is_there_in_every_language(everything: Report, code: str) -> None:
    text, reader = read(everything, code)
    names = {section.__name__ for section in SECTIONS} - {"prediction"}  # of one sampler only
    assert len(names) >= 13
    assert names <= set(reader.ids)
    assert f'<html lang="{code}">' in text
    assert text.count("<figure ") > 12


def test_every_string_is_escaped(everything: Report) -> None:
    words: dict[str, Any] = {
        "policy_label": EVIL, "size_label": EVIL, "arm": EVIL, "detail": EVIL,
        "reason": EVIL, "state": "FAIL",
    }  # fmt: skip
    first, *rest = search()
    rows = (first.model_copy(update={**words, "state": "COMPLETE"}), *rest)
    rows += (first.model_copy(update={**words, "number": 99}),)
    evil = {"study": EVIL, "data": EVIL, "commands": (EVIL,), "versions": {EVIL: EVIL}}
    text, reader = read(everything.model_copy(update={**evil, "trials": rows}))
    assert "<script>alert" not in text
    assert reader.seen.count("script") == 1
    assert text.count("&lt;script&gt;alert") > 10


def test_without_a_comparison(searched: Report) -> None:
    text, _ = read(searched)
    assert "not compared yet" in text
    assert 'id="comparison"' not in text


def test_with_nothing_finished(empty: Report) -> None:
    text, _ = read(empty)
    assert "No recommendation yet" in text
    assert "<figure" not in text
    assert "training loss is inf at step 77" in text


def test_with_no_trial_at_all() -> None:
    text, _ = read(make(()))
    assert "No trial was started." in text


def test_sortable_cells_carry_numbers(whole: tuple[str, Reader]) -> None:
    text, _ = whole
    assert re.search(r'<td class="num" data-sort="-1\.6\d+">−1\.654 ± 0\.031</td>', text)


def test_code_between_backticks_is_escaped_too() -> None:
    assert code("run `a <b>` & `c`") == ("run <code>a &lt;b&gt;</code> &amp; <code>c</code>")


def test_write_puts_every_file_in_place(tmp_path: Path, compared: Report) -> None:
    paths = RunDirectory(tmp_path)
    written = write(compared, paths)
    names = {path.relative_to(paths.report).as_posix() for path in written}
    figures = {f"figures/{n}.{end}" for n in ("comparison", "curve", "curve-difference",
               "ranking", "cost") for end in ("png", "svg")}  # fmt: skip
    assert names == {"report.html", "report.md", "report.json", *figures}
    assert {p for p in paths.report.rglob("*") if p.is_file()} == set(written)
    assert (paths.report / "figures/curve.png").read_bytes().startswith(b"\x89PNG")
    assert (paths.report / "report.html").stat().st_size < 3_000_000


def test_a_page_is_the_same_bytes_every_time(searched: Report) -> None:
    assert page(searched) == page(searched)
