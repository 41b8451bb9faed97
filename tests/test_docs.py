"""The documents: examples run, commands and files exist, and the expected output is of one run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from mptune import plugins
from mptune.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_gives_the_figure_it_promises(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (example,) = [text for text in found if "estimate_lml" in text]
    exec(compile(example, "README.md", "exec"), {})
    value = float(capsys.readouterr().out.split()[0])
    assert value == pytest.approx(-44.36, abs=0.005)


def pages() -> dict[str, str]:
    """Every page of the documentation, by its path below the repository's root."""
    docs = ROOT / "docs"
    found = [
        ROOT / "README.md",
        *docs.glob("*.md"),
        *docs.glob("ja/*.md"),
        docs / "examples/README.md",
    ]
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in found}


@pytest.mark.parametrize("page", pages())
def test_every_command_of_a_page_exists(page: str) -> None:
    used = re.findall(r"^\$ mptune ([\w-]+)", pages()[page], flags=re.MULTILINE)
    assert used or page != "README.md"
    assert [c for c in used if c not in COMMANDS] == []


@pytest.mark.parametrize("page", pages())
def test_links_and_pictures_are_there(page: str) -> None:
    text = pages()[page]
    targets = re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", text)
    assert targets or page != "README.md"
    assert [t for t in targets if not ((ROOT / page).parent / t).exists()] == []


@pytest.mark.parametrize("page", pages())
def test_links_to_a_section_name_one(page: str) -> None:
    for target, section in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", pages()[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        titles = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
        assert section in anchors


def test_the_expected_output_agrees_with_itself_and_with_the_example_report() -> None:
    """A README that was edited by hand, or from another run than docs/examples, is found."""
    (block,) = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)
    row = r"^ +(\d+) .*?(−\d+\.\d{3}) ± \d\.\d{3} +± \d\.\d{3} +\d+\.\d{3} "
    rows = re.findall(row, block, flags=re.MULTILINE)
    assert sorted(trial for trial, _ in rows) == ["0", "1", "2", "3", "4"]
    scores = [float(lml.replace("−", "-")) for _, lml in rows]
    assert scores == sorted(scores, reverse=True)
    (found,) = re.findall(r"Pre-train .*? bits per byte\)\.", block, flags=re.DOTALL)
    recommendation = " ".join(found.split())
    report = ROOT / "docs" / "examples" / "quickstart" / "report.md"
    assert recommendation in report.read_text(encoding="utf-8")
    assert all(lml in report.read_text(encoding="utf-8") for _, lml in rows)


@pytest.mark.parametrize("name", ["make demo", "make test", "make lint"])
def test_make_targets_exist(name: str) -> None:
    target = name.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_page_of_policies_is_what_the_code_says() -> None:
    """`python docs/make_policies.py` writes it again."""
    scope = runpy.run_path(str(ROOT / "docs" / "make_policies.py"))
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert page == scope["document"](scope["profiles"]())
    pictures = re.findall(r"\]\((policies/\w+\.png)\)", page)
    assert len(pictures) == len(plugins.modules("policies"))
    assert [p for p in pictures if not (ROOT / "docs" / p).exists()] == []


def test_the_page_for_managers_says_the_same_in_both_languages() -> None:
    english, japanese = (pages()[f"docs/{name}.md"] for name in ("managers", "ja/managers"))
    shapes, figures = [], []
    for text in (english, japanese):
        shapes.append(re.findall(r"^(?:#+|\||-)(?= )", text, flags=re.MULTILINE))
        shapes[-1] += re.findall(r"`[^`]+`", text)
        # Of the example; the title and the languages have numbers that are words.
        body = text.partition("\n## ")[2]
        figures.append(sorted(re.findall(r"−?\d+(?:\.\d+)?", body)))
    assert shapes[0] == shapes[1]
    assert set(figures[0]) == set(figures[1])
    of_example = {"2.645", "2.773", "−2.932", "−3.049", "14", "13", "28"}
    assert of_example <= set(figures[0])
    assert of_example <= set(re.findall(r"−?\d+(?:\.\d+)?", README))
