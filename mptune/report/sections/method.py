"""What the numbers mean, and what exactly was scored."""

from __future__ import annotations

from mptune.analysis.results import Report
from mptune.report.blocks import Listing, Section
from mptune.report.language import Language
from mptune.report.sections import Context

ORDER = 120

LINES = ("law", "sum", "mask", "bound", "plan", "estimator", "interval", "comparison", "rates")


def section(context: Context) -> Section:
    say = context.say
    lines = [say(f"method.{line}") for line in LINES]
    if context.report.selection is not None:
        lines.append(say("method.selection"))
    if context.report.importance:
        lines.append(say("method.importance"))
    lines.append(plan_words(context.report, say))
    return Section("method", say("section.method"), (Listing(tuple(lines)),))


def plan_words(report: Report, say: Language) -> str:
    """What exactly was scored."""
    prepared = report.prepared
    if prepared is None:
        plan = report.plan_hash or say("method.no_plan")
        return say("method.plan_alone", plan=plan)
    return say(
        "method.plan_of",
        plan=report.plan_hash or prepared.plan_hash,
        sequences=f"{prepared.heldout_sequences:,}",
        length=f"{prepared.length:,}",
        tokens=f"{prepared.heldout_tokens:,}",
        table=prepared.table_hash,
    )
