"""The documentation site: it builds without a warning, every link leads somewhere, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mptune.cli import COMMANDS
from mptune.spec.schema import SearchSpec

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The anchors, the links, and the files that a page loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        is_canonical = given.get("rel") in ("canonical", "next", "prev")
        if tag != "a" and not is_canonical:
            self.loaded |= {given[name] for name in ("href", "src") if name in given}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    reports = [path for path in site.glob("examples/*/report*.html") if path.is_file()]
    return {path: Page(path) for path in site.rglob("*.html") if path not in reports}


def leads_nowhere(site: Path, path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link of a page is to no file of the site, or to no anchor of its page."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    here = site if parts.path.startswith("/") else path.parent
    target = (here / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if target not in pages or not parts.fragment:
        return not target.is_file()
    return unquote(parts.fragment) not in pages[target].anchors


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 20
    wrong = {
        (str(path.relative_to(site)), link)
        for path, page in pages.items()
        for link in page.links | page.loaded
        if leads_nowhere(site, path, link, pages)
    }
    assert wrong == set()


def test_a_link_that_leads_nowhere_is_seen(site: Path, pages: dict[Path, Page]) -> None:
    home = site / "index.html"
    assert not leads_nowhere(site, home, "monitoring/#trackers", pages)
    assert leads_nowhere(site, home, "monitoring/#trakers", pages)
    assert leads_nowhere(site, home, "monitor/", pages)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {link for page in pages.values() for link in page.loaded}
    assert {link for link in loaded if urlsplit(link).netloc} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import) *['\"]?(?:https?:)?//", styles) == []


def test_reference_is_what_the_code_says(site: Path) -> None:
    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"usage: mptune {name}" not in commands] == []
    keys = (site / "reference" / "spec" / "index.html").read_text(encoding="utf-8")
    assert [k for k in SearchSpec.model_fields if f"<code>{k}" not in keys] == []
    assert (site / "reference" / "spec.schema.json").stat().st_size > 10_000
