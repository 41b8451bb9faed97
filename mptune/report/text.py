"""The report for a terminal (rich)."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

TERMINAL_ROWS = 20
"""Ranked trials that the terminal shows; the other views show all."""


def ranking_table(
    ranked: Sequence[Trial],
    selection: SearchSelection | None,
    say: Language,
    counting: float | None = None,
) -> Table:
    """The first `TERMINAL_ROWS` finished trials, best first, and the score of counting symbols."""
    from rich.markup import escape
    from rich.table import Column, Table

    shown = ranked[:TERMINAL_ROWS]
    candidates = {c.trial: c for c in selection.candidates} if selection else {}
    column = lml_column(candidates)
    known = column == "lml_total"
    text = any(trial.require_result().lml.bits_per_byte is not None for trial in shown)
    table = Table(
        Column("", justify="right"),
        Column(say("column.trial"), justify="right"),
        Column(say("column.policy"), overflow="fold"),
        Column(say("fact.size")),
        Column(say(f"column.{column}"), justify="right"),
        *([Column(say("column.evaluation"), justify="right")] if known else []),
        *([Column(say("column.bits"), justify="right")] if text else []),
        Column(say("column.loss"), justify="right"),
        Column(say("column.accuracy"), justify="right"),
        box=None,
        header_style="bold",
        padding=(0, 1),
    )
    for place, trial in enumerate(shown, start=1):
        result = trial.require_result()
        lml = result.lml
        bits = [f"{lml.bits_per_byte:.3f}" if lml.bits_per_byte else "–"] if text else []
        loss, accuracy = loss_at(result, 0.15), accuracy_at(result, 0.15)
        table.add_row(
            str(place),
            str(trial.number),
            escape(trial.policy_label),
            escape(trial.size_label),
            per_token(*lml_interval(trial, candidates.get(trial.number))),
            *([f"± {lml_half_width(lml):.3f}"] if known else []),
            *bits,
            "–" if loss is None else f"{loss:.3f}",
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            style="bold green" if place == 1 else "",
        )
    if counting is not None:
        table.add_row("–", "–", say("ranking.counting"), "–", minus(counting, 3), style="dim")
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
        console.print(ranking_table(found.ranked, report.selection, say, counting))
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
