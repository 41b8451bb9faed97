"""What the documents say is true: the README's example runs, and its promises name real things."""

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
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    value = float(capsys.readouterr().out.split()[0])
    assert value == pytest.approx(-44.36, abs=0.005)


def test_every_command_of_the_readme_exists() -> None:
    used = set(re.findall(r"^\$ mptune (\w+)", README, flags=re.MULTILINE))
    assert used
    assert used <= set(COMMANDS)


def test_links_and_pictures_are_there() -> None:
    targets = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_the_readme_shows_a_real_end_of_the_demo() -> None:
    assert "@@" not in README
    assert "nats per sequence" in README


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
