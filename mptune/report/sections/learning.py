"""Learning curves at equal tokens, equal FLOPs and equal seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mptune.analysis.compute import UNITS, Unit
from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import best_per_policy
from mptune.report.blocks import Figures, Section
from mptune.report.charts import Axis, Chart, Point, Series, Tick, power_tick
from mptune.report.layout import SERIES
from mptune.report.sections import Context
from mptune.report.words import interval
from mptune.trial import LearningPoint

ORDER = 30


@dataclass(frozen=True)
class _Learner:
    label: str
    colour: int
    points: tuple[LearningPoint, ...]


def section(context: Context) -> Section | None:
    learners = [c for c in _learners(context) if len(c.points) > 1][:SERIES]
    if not learners:
        return None
    say = context.say
    charts = tuple(_chart(context, learners, unit) for unit in UNITS)
    choices = tuple(say(f"unit.{unit}") for unit in UNITS)
    figures = Figures(charts, choices, say("figure.learning.choose"))
    return Section("learning", say("section.learning"), (figures,))


def _learners(context: Context) -> Iterator[_Learner]:
    """Arms over their seeds if there was a comparison, else the best trial of each policy."""
    comparison = context.report.comparison
    if comparison and any(len(points) > 1 for points in comparison.learning.values()):
        for name, points in comparison.learning.items():
            yield _Learner(name, context.colour(comparison.arms[name][0]), points)
        return
    trials = best_per_policy(context.ranked)
    for trial, label in zip(trials, context.labels(trials), strict=True):
        points = trial.learning or trial.require_result().learning
        yield _Learner(label, context.colour(trial), points)


def _chart(context: Context, learners: Sequence[_Learner], unit: Unit) -> Chart:
    say = context.say
    words = say(f"unit.{unit}")
    return Chart(
        name=f"learning-{unit}",
        title=say("figure.learning.title", unit=words),
        caption=say("figure.learning.caption", unit=words),
        x=Axis(say(f"axis.{unit}"), log=_spread(learners, unit) > 20, tick=_tick(context, unit)),
        y=Axis(say("axis.lml")),
        series=tuple(_series(context, c, unit, first=c is learners[0]) for c in learners),
    )


def _tick(context: Context, unit: Unit) -> Tick | None:
    return {"tokens": context.say.tick, "flops": power_tick, "seconds": None}[unit]


def _spread(learners: Sequence[_Learner], unit: Unit) -> float:
    values = [v for c in learners for p in c.points if (v := getattr(p, unit)) > 0]
    return max(values) / min(values) if values else 1.0


def _series(context: Context, learner: _Learner, unit: Unit, first: bool) -> Series:
    say = context.say
    points = tuple(
        Point(
            float(getattr(p, unit)),
            p.nats_per_token,
            f"{learner.label}\n{_amount(context, p, unit)}\n"
            f"{interval(p.nats_per_token, half_width(p.se), 3)} {say('unit.nats_per_token')}",
            y_low=p.nats_per_token - half_width(p.se),
            y_high=p.nats_per_token + half_width(p.se),
        )
        for p in sorted(learner.points, key=lambda p: p.progress)
    )
    return Series(learner.label, points, learner.colour, markers=True, bold=first)


def _amount(context: Context, point: LearningPoint, unit: Unit) -> str:
    if unit == "seconds":
        return context.say.duration(point.seconds)
    if unit == "flops":
        return f"{power_tick(point.flops)} FLOPs"
    return f"{context.say.count(point.tokens)} {context.say('unit.tokens')}"
