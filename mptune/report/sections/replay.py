"""How to run it again: commands, versions, seeds, hashes."""

from __future__ import annotations

from collections.abc import Iterator

from mptune.report.blocks import Code, Pairs, Section
from mptune.report.sections import Context

ORDER = 130


def section(context: Context) -> Section:
    pairs = [*sorted(context.report.versions.items()), *_facts(context)]
    blocks = (Code(context.report.commands), Pairs(tuple(pairs)))
    return Section("replay", context.say("section.replay"), blocks)


def _facts(context: Context) -> Iterator[tuple[str, str]]:
    say, report = context.say, context.report
    if report.plan_hash:
        yield say("replay.plan"), report.plan_hash
    if report.prepared is not None:
        yield say("replay.table"), report.prepared.table_hash
    arms = report.comparison.arms.values() if report.comparison else ()
    seeds = sorted({t.seed for arm in arms for t in arm if t.result and t.seed is not None})
    if seeds:
        yield say("replay.seeds"), say.join([str(seed) for seed in seeds])
