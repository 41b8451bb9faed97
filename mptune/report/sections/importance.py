"""Which dimensions of the search matter, and how the score goes with each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mptune.analysis.results import Importance
from mptune.report.blocks import Block, Figures, Section
from mptune.report.charts import Axis, Chart, Point, Series, percent_tick, short
from mptune.report.sections import Context
from mptune.report.words import minus
from mptune.trial import Trial

ORDER = 50

SLICES = 6
CATEGORIES = 8


def section(context: Context) -> Section | None:
    rows = context.report.importance
    names = [row.name for row in rows] or _dimensions(context)
    slices = tuple(_slice(context, name) for name in names[:SLICES])
    charts = tuple(chart for chart in slices if chart is not None)
    blocks: list[Block] = []
    if rows:
        blocks.append(Figures((_bars(context, rows),)))
    if charts:
        blocks.append(Figures(charts))
    title = context.say("section.importance")
    return Section("importance", title, tuple(blocks)) if blocks else None


def _dimensions(context: Context) -> list[str]:
    return sorted({name for row in context.ranked for name in row.params})


def _bars(context: Context, rows: Sequence[Importance]) -> Chart:
    say = context.say
    points = tuple(
        Point(row.share, y, f"{row.name}\n{percent_tick(row.share)}\n"
              + say("figure.importance.trials", n=row.trials))
        for y, row in enumerate(rows)
    )  # fmt: skip
    return Chart(
        name="importance",
        title=say("figure.importance.title"),
        caption=say("figure.importance.caption"),
        x=Axis(say("figure.importance.x"), low=0.0, tick=percent_tick),
        y=Axis(""),
        series=(Series("", points, 0, "bars"),),
        rows=tuple(row.name for row in rows),
    )


def _slice(context: Context, name: str) -> Chart | None:
    rows = [row for row in context.ranked if name in row.params]
    values = [row.params[name] for row in rows]
    if len(set(values)) < 2:
        return None
    numeric = all(isinstance(value, float) for value in values)
    return _numeric(context, name, rows) if numeric else _categories(context, name, rows)


def _numeric(context: Context, name: str, rows: Sequence[Trial]) -> Chart:
    values = [float(row.params[name]) for row in rows]
    log = min(values) > 0 and max(values) / min(values) > 30
    points = [(value, row.nats_per_token, row) for value, row in zip(values, rows, strict=True)]
    return Chart(
        name=f"slice-{_file_name(name)}",
        title=name,
        caption=context.say("figure.slice.caption", name=name),
        x=Axis(name, log=log),
        y=Axis(context.say("axis.lml")),
        series=tuple(
            Series("", (Point(x, y, _tip(context, name, row)),), context.colour(row), "dots")
            for x, y, row in points
        ),
        height=200,
        short=True,
    )


def _categories(context: Context, name: str, rows: Sequence[Trial]) -> Chart:
    """The best first; a row for each choice, a point for each trial."""
    order = list(dict.fromkeys(str(row.params[name]) for row in rows))[:CATEGORIES]
    shown = [row for row in rows if str(row.params[name]) in order]
    points = tuple(
        Point(row.nats_per_token, order.index(str(row.params[name])),
              _tip(context, name, row))
        for row in shown
    )  # fmt: skip
    return Chart(
        name=f"slice-{_file_name(name)}",
        title=name,
        caption=context.say("figure.slice.caption", name=name),
        x=Axis(context.say("axis.lml")),
        y=Axis(""),
        series=(Series("", points, 0, "dots"),),
        rows=tuple(short(words, 30) for words in order),
        short=True,
    )


def _tip(context: Context, name: str, row: Trial) -> str:
    value = row.params[name]
    words = f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return (
        f"{name} = {words}\n{minus(row.nats_per_token, 3)} {context.say('unit.nats_per_token')}\n"
        f"{context.say('column.trial')} {row.number}, {row.policy_label}"
    )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
