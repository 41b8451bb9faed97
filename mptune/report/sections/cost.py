"""Score against what training took: which trials nobody beats at less cost."""

from __future__ import annotations

from collections.abc import Sequence

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import policy_kind
from mptune.report.blocks import Figures, Section
from mptune.report.charts import Axis, Chart, Point, Series, power_tick
from mptune.report.layout import SERIES
from mptune.report.sections import Context
from mptune.report.words import per_token, power
from mptune.trial import Trial

ORDER = 60

FRONT = SERIES - 1
"""Colour of the front, that of no policy if there are fewer than six."""


def section(context: Context) -> Section | None:
    if len(context.ranked) < 2:
        return None
    return Section("cost", context.say("section.cost"), (Figures((_chart(context),)),))


def front(ranked: Sequence[Trial]) -> list[Trial]:
    """Trials that no trial of at most their FLOPs beats, by cost."""
    found: list[Trial] = []
    for trial in sorted(ranked, key=lambda t: (t.require_result().cost.flops, -t.nats_per_token)):
        if not found or trial.nats_per_token > found[-1].nats_per_token:
            found.append(trial)
    return found


def _chart(context: Context) -> Chart:
    say, best = context.say, front(context.ranked)
    kinds: dict[str, list[Trial]] = {}
    for trial in context.ranked:
        kinds.setdefault(policy_kind(trial), []).append(trial)
    dots = [
        Series(kind, tuple(_point(context, trial) for trial in trials), context.colour(trials[0]),
               "dots")
        for kind, trials in kinds.items()
    ]  # fmt: skip
    line = Series(
        say("figure.cost.front"),
        tuple(Point(t.require_result().cost.flops, t.nats_per_token) for t in best),
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


def _point(context: Context, trial: Trial) -> Point:
    cost, half = trial.require_result().cost, lml_half_width(trial.require_result().lml)
    tip = (
        f"{trial.label}\n{per_token(trial.nats_per_token, half)} "
        f"{context.say('unit.nats_per_token')}\n{power(cost.flops)} FLOPs, "
        f"{context.say.duration(cost.total_s)}"
    )
    return Point(cost.flops, trial.nats_per_token, tip)
