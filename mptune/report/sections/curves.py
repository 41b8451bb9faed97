"""S(r), the score at every mask rate, by policy; the area is the LML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import best_per_policy, is_fixed_15
from mptune.report.blocks import Figures, Section
from mptune.report.charts import Axis, Chart, Point, Series, percent_tick
from mptune.report.layout import SERIES
from mptune.report.sections import Context
from mptune.report.words import interval
from mptune.trial import CurvePoint, Trial

ORDER = 20


def section(context: Context) -> Section | None:
    rows = [r for r in best_per_policy(context.ranked) if len(_curve(r)) > 1][:SERIES]
    if not rows:
        return None
    charts = [_curves(context, rows)]
    if len(rows) > 1:
        charts.append(_differences(context, rows))
    return Section("curves", context.say("section.curves"), (Figures(tuple(charts)),))


def _curve(row: Trial) -> list[CurvePoint]:
    return sorted(row.require_result().lml.curve, key=lambda point: point.mask_rate)


def _tip(label: str, rate: float, value: float, half_width: float, unit: str) -> str:
    return f"{label}\nr = {percent_tick(rate)}\n{interval(value, half_width, 3)} {unit}"


def _curves(context: Context, rows: Sequence[Trial]) -> Chart:
    say = context.say
    unit = say("unit.nats_per_masked")
    series = []
    labels = context.labels(rows)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        points = tuple(
            Point(
                p.mask_rate,
                p.nats_per_token,
                _tip(label, p.mask_rate, p.nats_per_token, half_width(p.se), unit),
                y_low=p.nats_per_token - half_width(p.se),
                y_high=p.nats_per_token + half_width(p.se),
            )
            for p in _curve(row)
        )
        first = place == 0
        series.append(Series(label, points, context.colour(row), area=first, bold=first))
    return Chart(
        name="curve",
        title=say("figure.curve.title"),
        caption=say("figure.curve.caption", best=labels[0]),
        x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        y=Axis(say("figure.curve.y"), high=0.0),
        series=tuple(series),
        height=300,
    )


def _differences(context: Context, rows: Sequence[Trial]) -> Chart:
    say = context.say
    reference = next((row for row in rows if is_fixed_15(row.policy)), rows[-1])
    base = _curve(reference)
    rates, scores = ([getattr(p, n) for p in base] for n in ("mask_rate", "nats_per_token"))
    series = []
    labels = context.labels(rows)
    for row, label in zip(rows, labels, strict=True):
        found = [
            (p.mask_rate, p.nats_per_token - float(np.interp(p.mask_rate, rates, scores)))
            for p in _curve(row)
        ]
        points = tuple(
            Point(r, d, _tip(label, r, d, float("nan"), say("unit.nats_per_masked")))
            for r, d in found
        )
        series.append(Series(label, points, context.colour(row), bold=row is rows[0]))
    name = labels[rows.index(reference)]
    return Chart(
        name="curve-difference",
        title=say("figure.curve_difference.title", reference=name),
        caption=say("figure.curve_difference.caption", reference=name),
        x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        y=Axis(say("figure.curve_difference.y")),
        series=tuple(series),
        guides=(("x", 0.15), ("y", 0.0)),
        height=240,
    )
