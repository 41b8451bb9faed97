"""Failed trials by reason, the most frequent first."""

from __future__ import annotations

from mptune.report.blocks import Details, Section
from mptune.report.sections import Context

ORDER = 110


def section(context: Context) -> Section | None:
    say = context.say
    groups = tuple(
        Details(
            say("failures.group", reason=say.optional(f"reason.{reason}", reason), n=len(trials)),
            tuple(
                say("failures.trial", number=t.number, label=t.label,
                    detail=t.detail or say("failures.no_detail"))
                for t in trials
            ),
        )
        for reason, trials in context.found.failures
    )  # fmt: skip
    return Section("failures", say("section.failures"), groups) if groups else None
