"""The report for a terminal (rich)."""

from __future__ import annotations

import math
from textwrap import fill
from typing import TYPE_CHECKING

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.results import Report
from mptune.report.formatting import per_token
from mptune.report.language import Language, language
from mptune.report.sections.context import Context
from mptune.report.sections.search import ranking_table
from mptune.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDE = 100
"""Characters of a line that the whole ranking needs."""

WIDTHS = {"lml_total": 14, "lml_evaluation": 14, "evaluation": 10, "bits": 13, "loss": 7,
          "accuracy": 8}  # fmt: skip
"""Columns of numbers that the terminal shows, and the characters of a line of their header."""

TERMINAL_ROWS = 20
"""Ranked trials that the terminal shows; the other views show all."""


def _ranking(context: Context, narrow: bool) -> RichTable:
    """The first `TERMINAL_ROWS` rows of the ranking, and the score of counting symbols."""
    from rich.markup import escape
    from rich.table import Column
    from rich.table import Table as RichTable

    say, ranking = context.say, ranking_table(context)
    widths = {**WIDTHS, "bits": 8, "evaluation": 0, "accuracy": 0} if narrow else WIDTHS
    shown = [column.key for column in ranking.head if widths.get(column.key)]
    table = RichTable(
        Column(say("column.trial"), justify="right", no_wrap=True),
        Column(say("column.policy"), no_wrap=True, overflow="ellipsis"),
        Column(say("fact.size"), no_wrap=True, overflow="ellipsis"),
        *(
            # Words of the header stand below each other.
            Column(fill(say(f"column.{key}"), widths[key]), justify="right", no_wrap=True)
            for key in shown
        ),
        box=None,
        collapse_padding=True,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1),
    )
    for number, row in enumerate(ranking.rows):
        cells = dict(zip((column.key for column in ranking.head), row, strict=True))
        place, policy = cells["#"].value, cells["policy"]
        if place is None or place <= TERMINAL_ROWS:
            style = "bold green" if number == ranking.first else "" if place else "dim"
            values = (cells[key].words for key in shown)
            names = escape(policy.words), escape(policy.below)
            table.add_row(cells["trial"].words, *names, *values, style=style)
    return table


def show(console: Console, report: Report, say: Language | None = None) -> None:
    """Print ranking, recommendation, verdict, cost, and the checks that fail."""
    from rich.text import Text

    context = Context(report, say or language())
    say, found = context.say, context.found

    def out(style: str, *lines: str) -> None:
        for line in lines:
            console.print(Text(line, style=style))

    if found.ranked:
        console.print(_ranking(context, narrow=console.width < WIDE))
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
