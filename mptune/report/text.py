"""The report for a terminal (rich)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import accuracy_at, loss_at
from mptune.analysis.results import Report
from mptune.analysis.selection import SearchSelection
from mptune.report.findings import Findings, findings
from mptune.report.formatting import minus, per_token
from mptune.report.language import Language, language
from mptune.report.sections.context import lml_column, lml_interval
from mptune.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 100
"""Characters of a line that the whole ranking needs."""

TERMINAL_ROWS = 20
"""Ranked trials that the terminal shows; the other views show all."""


def ranking_table(
    ranked: Sequence[Trial],
    selection: SearchSelection | None,
    say: Language,
    counting: float | None = None,
    narrow: bool = False,
) -> Table:
    """The first `TERMINAL_ROWS` finished trials, best first, and the score of counting symbols.

    Args:
        narrow: leave out what fits only in `WIDE` columns.
    """
    from rich.markup import escape
    from rich.table import Column, Table

    shown = ranked[:TERMINAL_ROWS]
    candidates = {c.trial: c for c in selection.candidates} if selection else {}
    lml_key = lml_column(candidates)
    split = lml_key == "lml_total" and not narrow
    text = any(trial.require_result().lml.bits_per_byte is not None for trial in shown)

    def column(key: str, width: int) -> Column:
        """A column of numbers; words of its header stand below each other."""
        return Column(fill(say(key), width), justify="right", no_wrap=True)

    table = Table(
        Column(say("column.trial"), justify="right", no_wrap=True),
        Column(say("column.policy"), no_wrap=True, overflow="ellipsis"),
        Column(say("fact.size"), no_wrap=True, overflow="ellipsis"),
        column(f"column.{lml_key}", 14),
        *([column("column.evaluation", 10)] if split else []),
        *([column("column.bits", 8 if narrow else 13)] if text else []),
        column("column.loss", 7),
        *([] if narrow else [column("column.accuracy", 8)]),
        box=None,
        collapse_padding=True,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1),
    )

    def add_counting() -> None:
        table.add_row("–", say("ranking.counting"), "–", minus(counting or 0.0, 3), style="dim")

    below = counting
    for trial in shown:
        if below is not None and trial.nats_per_token < below:
            add_counting()
            below = None
        result = trial.require_result()
        lml = result.lml
        bits = [f"{lml.bits_per_byte:.3f}" if lml.bits_per_byte else "–"] if text else []
        loss, accuracy = loss_at(result, 0.15), accuracy_at(result, 0.15)
        table.add_row(
            str(trial.number),
            escape(trial.policy_label),
            escape(trial.size_label),
            per_token(*lml_interval(trial, candidates.get(trial.number))),
            *([f"± {lml_half_width(lml):.3f}"] if split else []),
            *bits,
            "–" if loss is None else f"{loss:.3f}",
            *([] if narrow else ["–" if accuracy is None else f"{100 * accuracy:.1f} %"]),
            style="bold green" if trial is shown[0] else "",
        )
    if below is not None:
        add_counting()
    return table


def show(
    console: Console, report: Report, say: Language | None = None, found: Findings | None = None
) -> None:
    """Print ranking, recommendation, verdict, cost, and the checks that fail.

    Args:
        found: the findings of the report in this language, if they are known.
    """
    from rich.text import Text

    say = say or language()
    found = found or findings(report, say)

    def out(style: str, *lines: str) -> None:
        for line in lines:
            console.print(Text(line, style=style))

    if found.ranked:
        counting = report.prepared.counting if report.prepared else None
        narrow = console.width < WIDE
        console.print(ranking_table(found.ranked, report.selection, say, counting, narrow))
        hidden = len(found.ranked) - TERMINAL_ROWS
        if hidden > 0:
            out("dim", say("terminal.more", n=hidden))
        out("", *shift_words(found.choice or found.ranked[0], say))
    for reason, trials in found.failures:
        detail = trials[0].detail or say("failures.no_detail")
        words = say.optional(f"reason.{reason}", reason)
        out("red", say("terminal.failed", n=len(trials), reason=words, detail=detail))
    console.print()
    out("bold", found.headline)
    out("", *found.recommendation)
    out("bold", f"\n{found.verdict_title}: {found.verdict_label}")
    out("", *found.verdict_words, *(flip.words for flip in found.flips))
    out("dim", "", *found.certainty, found.cost)
    out("yellow", *(f"! {check.words}" for check in found.checks if not check.ok))


def shift_words(trial: Trial, say: Language) -> list[str]:
    """A line for each domain: the score there, and its difference to the in-distribution score.

    The half-width of the difference treats the two scores as independent.
    """
    home = trial.require_result().lml
    return [
        say(
            "terminal.domain",
            domain=name,
            score=per_token(lml.nats_per_token, lml_half_width(lml)),
            difference=per_token(
                lml.nats_per_token - home.nats_per_token,
                math.hypot(lml_half_width(lml), lml_half_width(home)),
            ),
        )
        for name, lml in trial.require_result().lml_shift.items()
    ]
