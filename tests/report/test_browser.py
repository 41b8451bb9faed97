"""The report in a real browser: nothing complains, nothing is asked for, everything answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptune.analysis.results import Report
from mptune.report.language import language
from mptune.report.pages import page
from tests.report.chromium import Tab, chromium, executable, file_url

NEEDED = "MPTUNE_BROWSER_TESTS"

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

pytestmark = pytest.mark.skipif(
    executable() is None and NEEDED not in os.environ,
    reason=f"no Chromium here: `make browser` installs it ({NEEDED}=1 makes its absence a failure)",
)

SHOWN_FIGURE = "[...document.querySelectorAll('#{name} svg')].find(s => s.clientWidth)"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(everything: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for code in ("en", "ja"):
        (folder / f"{code}.html").write_text(page(everything, language(code)), encoding="utf-8")
    return folder


@pytest.fixture
def wide(tab: Tab, pages: Path) -> Tab:
    tab.open(file_url(pages / "en.html"), width=1200)
    return tab


def centre(tab: Tab, expression: str) -> tuple[float, float]:
    """Scroll an element into view; the window's coordinates of its centre."""
    tab.run(f"window.found = {expression}; found.scrollIntoView({{block: 'center'}})")
    x, y = tab.run(
        "(() => { const b = found.getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    return x, y


def click(tab: Tab, expression: str) -> None:
    tab.click(*centre(tab, expression))


def column(tab: Tab, section: str, number: int) -> list[str]:
    found: list[str] = tab.run(
        f"[...document.querySelector('#{section} table').tBodies[0].rows]"
        f".filter(r => !r.hidden).map(r => r.cells[{number}].textContent.trim())"
    )
    return found


@pytest.mark.parametrize("code", ["en", "ja"])
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_a_complaint_or_a_request(
    tab: Tab, pages: Path, code: str, width: int, dark: bool
) -> None:
    tab.open(file_url(pages / f"{code}.html"), width=width, dark=dark)
    assert tab.complaints == []
    assert tab.requests == []
    assert tab.run("document.documentElement.lang") == code
    assert tab.run("document.documentElement.scrollWidth") <= width
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(17, 21, 27)") is dark


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("code", ["en", "ja"])
@pytest.mark.parametrize("name", ["quickstart", "text", "watch"])
def test_real_runs_open_sort_and_filter(
    tab: Tab, tmp_path: Path, name: str, code: str, width: int
) -> None:
    """What the quickstart and the two comparisons found, on today's page."""
    said = json.loads((EXAMPLES / name / "report.json").read_text(encoding="utf-8"))
    written = page(Report.model_validate(said["input"]), language(code))
    (tmp_path / "page.html").write_text(written, encoding="utf-8")
    tab.open(file_url(tmp_path / "page.html"), width=width)
    assert (tab.complaints, tab.requests) == ([], [])
    assert tab.run("document.documentElement.scrollWidth") <= width
    if name == "quickstart":
        numbers = column(tab, "trials", 0)
        click(tab, "document.querySelector('#trials th button')")
        click(tab, "document.querySelector('#trials th button')")
        assert column(tab, "trials", 0) == numbers[::-1] == ["5", "4", "3", "2", "1", "0"]


def test_a_complaint_and_a_request_would_be_seen(tab: Tab, tmp_path: Path) -> None:
    bad = "<script>console.error('x'); nothing()</script><img src='http://127.0.0.1:9/a.png'>"
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    tab.open(file_url(tmp_path / "bad.html"), width=800)
    assert len(tab.complaints) >= 2
    assert tab.requests == ["http://127.0.0.1:9/a.png"]


def test_the_drawing_fits_the_screen(tab: Tab, pages: Path) -> None:
    sizes = {}
    for width in (390, 1200):
        tab.open(file_url(pages / "en.html"), width=width)
        figure = SHOWN_FIGURE.format(name="curves")
        sizes[width] = tab.run(f"{figure}.viewBox.baseVal.width")
    assert sizes == {390: 340, 1200: 920}


def test_a_click_on_a_header_sorts_and_a_second_one_turns_round(wide: Tab) -> None:
    places = column(wide, "ranking", 0)
    assert places == sorted(places, key=int)
    click(wide, "document.querySelector('#ranking th button')")
    click(wide, "document.querySelector('#ranking th button')")
    assert column(wide, "ranking", 0) == places[::-1]
    assert wide.run("document.querySelector('#ranking th').ariaSort") == "descending"


def test_a_header_sorts_from_the_keyboard(wide: Tab) -> None:
    wide.run("document.querySelectorAll('#trials th button')[4].focus()")
    wide.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
    shown = [v for v in column(wide, "trials", 4) if v != "–"]
    assert shown == sorted(shown, reverse=True)  # of negative numbers, as words


def test_words_and_menus_filter_the_trials(wide: Tab) -> None:
    assert len(column(wide, "trials", 0)) == 13
    click(wide, "document.querySelector('#trials input')")
    wide.type("beta 64")
    assert column(wide, "trials", 0) == ["3", "11", "12"]
    wide.run(
        "(m => { m.value = 'failed'; m.dispatchEvent(new Event('input')); })"
        "(document.querySelector('#trials select'))"
    )
    assert column(wide, "trials", 0) == ["11", "12"]
    assert wide.run("document.querySelector('#trials output').textContent") == "2 of 13 rows"


def test_hovering_shows_the_numbers(wide: Tab) -> None:
    figure = SHOWN_FIGURE.format(name="ranking")
    assert wide.run("document.querySelector('.tip').hidden")
    wide.point_at(*centre(wide, f"{figure}.querySelector('[data-tip]')"))
    said = wide.run("document.querySelector('.tip').innerText")
    assert "1. uniform (accumulated)" in said
    assert "−1.654 ± 0.031 nats per token" in said
    assert "P(best): 71.0 %" in said
    wide.point_at(2, 2)
    assert wide.run("document.querySelector('.tip').hidden")


def test_arrow_keys_go_through_the_points(wide: Tab) -> None:
    figure = SHOWN_FIGURE.format(name="ranking")
    centre(wide, figure)
    wide.run(f"{figure}.focus()")
    wide.press("ArrowRight")
    first = wide.run("document.querySelector('.tip strong').textContent")
    wide.press("ArrowRight")
    second = wide.run("document.querySelector('.tip strong').textContent")
    assert (first[:2], second[:2]) == ("1.", "2.")
    wide.press("Escape")
    assert wide.run("document.querySelector('.tip').hidden")


def test_one_learning_curve_is_seen_at_a_time(wide: Tab) -> None:
    shown = "[...document.querySelectorAll('#learning figure')].filter(f => f.clientHeight)"
    assert wide.run(f"{shown}.map(f => f.id)") == ["figure-learning-tokens"]
    click(wide, "document.querySelectorAll('#learning .choices button')[1]")
    assert wide.run(f"{shown}.map(f => f.id)") == ["figure-learning-flops"]


def test_every_figure_is_labelled_and_reachable(wide: Tab) -> None:
    assert wide.run(
        "[...document.querySelectorAll('figure svg')]"
        ".every(s => s.getAttribute('aria-label').length > 20 && s.tabIndex === 0)"
    )


def test_print_shows_every_learning_curve_and_no_controls(wide: Tab) -> None:
    wide.call("Emulation.setEmulatedMedia", media="print")
    assert wide.run("[...document.querySelectorAll('#learning figure')].every(f => f.clientHeight)")
    assert not wide.run("document.querySelector('#trials .filter').clientHeight")
    wide.call("Emulation.setEmulatedMedia", media="")
