"""Definitions of the numbers, the scoring plan, and how to run the study again."""

from __future__ import annotations

from mptune.report.blocks import Code, Listing, Pairs, ReportSection
from mptune.report.sections.context import Context

LINES = ("law", "sum", "mask", "bound", "plan", "estimator", "interval", "comparison", "rates")


def method(context: Context) -> ReportSection:
    """The definition of the score and of its intervals, and the scoring plan."""
    say, report, prepared = context.say, context.report, context.report.prepared
    lines = [say(f"method.{line}") for line in LINES]
    if report.selection is not None:
        lines.append(say("method.selection"))
    if report.importance:
        lines.append(say("method.importance"))
    if prepared is None:
        lines.append(say("method.plan_alone", plan=report.plan_hash or say("method.no_plan")))
    else:
        lines.append(
            say(
                "method.plan_of",
                plan=report.plan_hash or prepared.plan_hash,
                sequences=f"{prepared.heldout_sequences:,}",
                length=f"{prepared.length:,}",
                tokens=f"{prepared.heldout_tokens:,}",
                table=prepared.table_hash,
            )
        )
    return ReportSection("method", say("section.method"), (Listing(tuple(lines)),))


def replay(context: Context) -> ReportSection:
    """The commands, versions, seeds and hashes that replay the study."""
    say, report = context.say, context.report
    pairs = sorted(report.versions.items())
    if report.plan_hash:
        pairs.append((say("replay.plan"), report.plan_hash))
    if report.prepared is not None:
        pairs.append((say("replay.table"), report.prepared.table_hash))
    arms = report.comparison.arms.values() if report.comparison else ()
    seeds = sorted({t.seed for arm in arms for t in arm if t.result and t.seed is not None})
    if seeds:
        pairs.append((say("replay.seeds"), say.join([str(seed) for seed in seeds])))
    blocks = (Code(report.commands), Pairs(tuple(pairs)))
    return ReportSection("replay", say("section.replay"), blocks)
