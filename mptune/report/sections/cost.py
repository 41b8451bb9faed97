"""Score against what training took: which trials nobody beats at less cost."""

from __future__ import annotations

from collections.abc import Sequence

from mptune.analysis.results import Ranked, policy_kind
from mptune.report.blocks import Figures, Section
from mptune.report.charts import Axis, Chart, Point, Series, power_tick
from mptune.report.layout import SERIES
from mptune.report.sections import Context
from mptune.report.words import per_token, power

ORDER = 60

FRONT = SERIES - 1
"""Colour of the front, that of no policy if there are fewer than six."""


def section(context: Context) -> Section | None:
    if len(context.ranked) < 2:
        return None
    return Section("cost", context.say("section.cost"), (Figures((_chart(context),)),))


def front(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Trials that no trial of at most their FLOPs beats, by cost."""
    found: list[Ranked] = []
    for row in sorted(ranked, key=lambda r: (r.result.cost.flops, -r.nats_per_token)):
        if not found or row.nats_per_token > found[-1].nats_per_token:
            found.append(row)
    return found


def _chart(context: Context) -> Chart:
    say, best = context.say, front(context.ranked)
    kinds: dict[str, list[Ranked]] = {}
    for row in context.ranked:
        kinds.setdefault(policy_kind(row.trial), []).append(row)
    dots = [
        Series(kind, tuple(_point(context, row) for row in rows), context.colour(rows[0].trial),
               "dots")
        for kind, rows in kinds.items()
    ]  # fmt: skip
    line = Series(
        say("figure.cost.front"),
        tuple(Point(row.result.cost.flops, row.nats_per_token) for row in best),
        FRONT,
        "steps",
    )
    return Chart(
        name="cost",
        title=say("figure.cost.title"),
        caption=say("figure.cost.caption"),
        x=Axis(say("axis.flops"), log=True, tick=power_tick),
        y=Axis(say("axis.lml")),
        series=(line, *dots),
    )


def _point(context: Context, row: Ranked) -> Point:
    tip = (
        f"{row.trial.label}\n{per_token(row.nats_per_token, row.half_width)} "
        f"{context.say('unit.nats_per_token')}\n{power(row.result.cost.flops)} FLOPs, "
        f"{context.say.duration(row.result.cost.total_s)}"
    )
    return Point(row.result.cost.flops, row.nats_per_token, tip)
