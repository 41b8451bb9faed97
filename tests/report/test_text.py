"""The report in the terminal and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import pytest
from rich.console import Console

from mptune.analysis.results import Report
from mptune.report import show
from mptune.report.formatting import (
    count,
    decimals,
    duration,
    interval,
    minus,
    power,
)
from mptune.report.language import language
from mptune.report.pages import markdown
from mptune.report.text import TERMINAL_ROWS
from mptune.trial import Trial
from tests.report.conftest import SIZES, make, search, trial

SMALL = next(iter(SIZES))


def shown(report: Report, width: int = 130) -> str:
    console = Console(file=io.StringIO(), record=True, width=width)
    show(console, report)
    return console.export_text()


def test_terminal_has_ranking_recommendation_and_verdict(compared: Report) -> None:
    text = shown(compared)
    assert "−1.654 ± 0.032" in text
    assert f"uniform (accumulated) on {list(SIZES)[1]}" in text
    assert "Accumulated against fixed 15 %: accumulated is better" in text
    assert "! 10 of 13 trials finished" in text
    assert "2 failed, the training loss was not a number: training loss is nan at step 41" in text


def test_the_difference_to_a_domain_has_its_sign() -> None:
    row = trial(0, SMALL, "fixed 15 %")
    home = row.require_result()
    for difference, words in ((0.25, "distribution: 0.250 ±"), (-0.25, "distribution: −0.250 ±")):
        nats = home.lml.nats_per_token + difference
        shift = {"far": home.lml.model_copy(update={"nats_per_token": nats})}
        result = home.model_copy(update={"lml_shift": shift})
        assert words in shown(make((row.model_copy(update={"result": result}),)))


def test_terminal_takes_labels_literally() -> None:
    row = trial(0, SMALL, "fixed 15 %", policy_label="[bold]x[/bold]")
    assert "[bold]x[/bold]" in shown(make((row,)))


def test_terminal_says_how_many_rows_it_leaves_out() -> None:
    rows = tuple(trial(n, SMALL, "fixed 30 %") for n in range(TERMINAL_ROWS + 3))
    assert "and 3 more in the report" in shown(make(rows))


def test_terminal_with_nothing_finished(empty: Report) -> None:
    assert "No trial has finished, so there is nothing to recommend." in shown(empty)


def test_bits_per_byte_column_only_for_text() -> None:
    row = trial(0, SMALL, "fixed 15 %")
    assert row.result is not None
    lml = row.result.lml.model_copy(update={"bits_per_byte": None})
    row = row.model_copy(update={"result": row.result.model_copy(update={"lml": lml})})
    assert "bits per byte" not in shown(make((row,)))
    assert "bits per byte" in shown(make())


def test_markdown_has_every_section(compared: Report) -> None:
    text = markdown(compared)
    for heading in ("Recommendation", "Ranking", "Every trial", "Failures", "Method", "Replay"):
        assert f"\n## {heading}\n" in text
    assert "](figures/curve.png)" in text
    assert "3f9a61c2d07be845" in text
    assert "mptune search search_spaces/python-bytes.yaml" in text


def of_groups(report: Report, groups: int) -> Report:
    """The same report of so few groups that nothing is claimed of others."""

    def scored(trials: Iterable[Trial]) -> tuple[Trial, ...]:
        few = {"groups": groups, "se_population": None, "df_population": None}
        lmls = [t.result and t.result.lml.model_copy(update=few) for t in trials]
        return tuple(
            t.model_copy(update={"result": t.result and t.result.model_copy(update={"lml": lml})})
            for t, lml in zip(trials, lmls, strict=True)
        )

    found = report.comparison
    assert found is not None
    comparison = found.model_copy(
        update={
            "arms": {name: scored(trials) for name, trials in found.arms.items()},
            "differences": tuple(replace(d, few_groups=groups) for d in found.differences),
        }
    )
    return report.model_copy(update={"trials": scored(report.trials), "comparison": comparison})


@pytest.mark.parametrize(("groups", "these"), [(1, "this one group"), (5, "these 5 groups")])
def test_no_claim_of_other_groups_is_made_on_few_of_them(
    compared: Report, groups: int, these: str
) -> None:
    text = markdown(of_groups(compared, groups))
    assert f"on {these} of sequences only)" in text, "the verdict"
    claim = f"every interval and probability in this report holds for {these.replace('one ', '')}"
    assert claim.replace("these 5", "these") in text
    captions = [line for line in text.splitlines() if "Intervals hold for" in line]
    assert len(captions) == 3
    assert all(f"Intervals hold for {these} of sequences only." in line for line in captions)
    assert "are enough for this skewness" not in text
    assert f"only {groups} group" in text
    decided = next(line for line in text.splitlines() if "every comparison is decided" in line)
    assert decided.endswith(f"; on {these} of sequences only")
    assert "Intervals hold" not in markdown(compared)


def test_markdown_tables_are_rectangular(compared: Report) -> None:
    rows = list(search())
    rows[0] = rows[0].model_copy(update={"policy_label": "a|b <script>"})
    text = markdown(compared.model_copy(update={"trials": tuple(rows)}))
    assert "\\<script\\>" in text
    for block in text.split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_markdown_with_nothing_finished(empty: Report) -> None:
    assert "No trial has finished." in markdown(empty)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (count(999), "999"),
        (count(1_234_567), "1.23 M"),
        (count(999_700), "1.00 M"),
        (count(0), "0"),
        (power(3.14e15), "3.1 × 10¹⁵"),
        (power(9.99e15), "1.0 × 10¹⁶"),
        (power(0), "–"),
        (duration(59.7), "1 min 00 s"),
        (duration(4000), "1 h 06 min"),
        (duration(200_000), "2 d 07 h"),
        (interval(-1.52345, 0.0123), "−1.523 ± 0.012"),
        (interval(-1.5, float("nan")), "−1.500"),
        (interval(float("nan"), float("nan")), "–"),
        (language().probability(0.42), "42.0 %"),
        (language("ja").count(1_670_000), "167万"),
        (language("ja").duration(200), "3 分 20 秒"),
        (language().probability(1.0), "over 99.9 %"),
        (language().probability(0.0), "under 0.1 %"),
    ],
)
def test_words(words: str, expected: str) -> None:
    assert words == expected


def test_digits() -> None:
    assert [decimals(x) for x in (34.0, 1.2, 0.9, 0.12, 0.0034)] == [0, 1, 1, 2, 3]
    assert minus(-0.0001, 2) == "0.00"
    assert minus(-1.25, 1) == "−1.2"
