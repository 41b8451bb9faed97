"""Every language has the same keys with the same placeholders, and says the same numbers."""

from __future__ import annotations

import re
import string

import pytest

from mptune.analysis.results import Report
from mptune.errors import InputError
from mptune.report.findings import findings
from mptune.report.language import DEFAULT, Entry, language, languages
from mptune.report.pages import markdown

OTHERS = [code for code in languages() if code != DEFAULT]


def placeholders(entry: Entry) -> set[str]:
    """Of the general form: a form for one may leave out the count."""
    text = entry if isinstance(entry, str) else entry["other"]
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("code", OTHERS)
def test_keys_and_placeholders_are_those_of_english(code: str) -> None:
    english, other = language().entries, language(code).entries
    assert set(other) == set(english)
    wrong = [key for key in english if placeholders(english[key]) != placeholders(other[key])]
    assert wrong == []


@pytest.mark.parametrize("code", languages())
def test_forms_by_count_have_no_other_placeholders(code: str) -> None:
    for key, entry in language(code).entries.items():
        if not isinstance(entry, str):
            one = placeholders({"other": entry.get("one", entry["other"])})
            assert one <= placeholders(entry), key


def test_there_is_japanese() -> None:
    assert "ja" in OTHERS


def test_japanese_is_japanese_throughout() -> None:
    """Every text of more than a sign or a name has Japanese characters."""
    names = {"p", "FLOPs", "KPI", "LML"}
    for key, entry in language("ja").entries.items():
        text = entry if isinstance(entry, str) else entry["other"]
        words = re.sub(r"[{][a-z_]+[}]|[^\w]", "", text)
        if words and words not in names and key not in ("number.capital", "name"):
            assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text), key


def test_an_unknown_language_is_one_line() -> None:
    with pytest.raises(InputError, match="--lang: 'jp' is none of en, ja"):
        language("jp")


def test_numbers_are_the_same_in_every_language(everything: Report) -> None:
    """What the first screen says has the same figures, whatever the words around them."""
    english, japanese = (findings(everything, language(code)) for code in ("en", "ja"))

    def figures(words: tuple[str, ...]) -> list[str]:
        return sorted(re.findall(r"\d+\.\d+", " ".join(words)))

    assert figures(english.recommendation) == figures(japanese.recommendation)
    assert figures(english.verdict) == figures(japanese.verdict)
    assert [c.ok for c in english.checks] == [c.ok for c in japanese.checks]
    assert english.verdict == japanese.verdict


def test_markdown_in_japanese(everything: Report) -> None:
    text = markdown(everything, language("ja"))
    for heading in ("推奨", "採用前の確認事項", "順位", "全試行", "再現方法"):
        assert f"\n## {heading}\n" in text


@pytest.mark.parametrize(
    ("value", "english", "japanese"),
    [
        (1_500_000, "1.5 M", "150万"),
        (100_000, "100 k", "10万"),
        (6e6, "6 M", "600万"),
        (30, "30", "30"),
    ],
)
def test_ticks(value: float, english: str, japanese: str) -> None:
    assert (language().tick(value), language("ja").tick(value)) == (english, japanese)
