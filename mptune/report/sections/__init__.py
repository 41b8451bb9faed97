"""The sections of the report below its first screen.

A section is a function of a `Context` that returns text, tables and charts, or None if the study
has nothing for it. The templates decide how they look. The texts are in `lang/`.
"""

from __future__ import annotations

from collections.abc import Callable

from mptune.report.blocks import Code, Listing, Pairs, ReportSection
from mptune.report.sections.comparison import comparison, curves, learning
from mptune.report.sections.context import Context
from mptune.report.sections.search import cost, failures, importance, prediction, ranking, trials
from mptune.report.sections.transfer import kpi, robustness, sizes

METHOD = ("law", "sum", "mask", "bound", "plan", "estimator", "interval", "comparison", "rates")


def method(context: Context) -> ReportSection:
    """The definition of the score and of its intervals, and the scoring plan."""
    say, report, prepared = context.say, context.report, context.report.prepared
    lines = [say(f"method.{line}") for line in METHOD]
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


SECTIONS: tuple[Callable[[Context], ReportSection | None], ...] = (
    comparison, curves, learning, ranking, prediction, importance, cost, sizes, robustness, kpi,
    trials, failures, method, replay,
)  # fmt: skip
"""In the order of the page."""


def sections(context: Context) -> list[ReportSection]:
    """The sections of this study, in order."""
    made = (section(context) for section in SECTIONS)
    return [section for section in made if section is not None]
