"""The team's own figure against the LML, and against the loss at 15 %."""

from __future__ import annotations

from collections.abc import Callable

from mptune.analysis.intervals import half_width
from mptune.analysis.kpi import Correlation, KpiReport
from mptune.analysis.ranking import loss_at, policy_kind
from mptune.report.blocks import Block, Cell, Column, Figures, Section, Table, Text
from mptune.report.charts import Axis, Chart, Point, Series
from mptune.report.sections import Context
from mptune.report.words import minus
from mptune.trial import Trial

ORDER = 90


def section(context: Context) -> Section | None:
    kpi = context.report.kpi
    if kpi is None:
        return None
    say = context.say
    blocks: list[Block] = [Text(_answer(context, kpi))]
    charts = tuple(c for c in (_chart(context, kpi, "lml"), _chart(context, kpi, "loss")) if c)
    if charts:
        blocks.append(Figures(charts))
    if kpi.correlations:
        blocks.append(_table(context, kpi))
    if kpi.failed:
        blocks.append(Text(say("kpi.failed", n=kpi.failed), soft=True))
    return Section("kpi", say("section.kpi", name=kpi.name), tuple(blocks))


def _answer(context: Context, kpi: KpiReport) -> str:
    """Which of the two predicts it, and whether that is certain."""
    say = context.say
    if kpi.better is None or kpi.difference is None:
        return say("kpi.unknown", n=kpi.trials)
    ends = (kpi.difference_low, kpi.difference_high)
    low, high = ends if kpi.difference > 0 else (_negative(ends[1]), _negative(ends[0]))
    return say(
        f"kpi.{'certain' if kpi.certain else 'uncertain'}",
        better=say(f"kpi.by_{kpi.better}"),
        difference=minus(abs(kpi.difference), 2),
        low=_or_dash(low),
        high=_or_dash(high),
        n=kpi.trials,
    )


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _or_dash(value: float | None) -> str:
    return "–" if value is None else minus(value, 2)


def _chart(context: Context, kpi: KpiReport, predictor: str) -> Chart | None:
    say = context.say
    value: Callable[[Trial], float | None] = (
        (lambda trial: trial.nats_per_token)
        if predictor == "lml"
        else (lambda trial: loss_at(trial.require_result(), 0.15))
    )
    kinds: dict[str, list[Trial]] = {}
    for trial in context.ranked:
        if trial.kpi and trial.kpi.value is not None and value(trial) is not None:
            kinds.setdefault(policy_kind(trial), []).append(trial)
    if not kinds:
        return None
    return Chart(
        name=f"kpi-{predictor}",
        title=say(f"figure.kpi_{predictor}.title"),
        caption=say(f"figure.kpi_{predictor}.caption", name=kpi.name),
        x=Axis(say("axis.lml" if predictor == "lml" else "axis.loss")),
        y=Axis(kpi.name),
        series=tuple(
            Series(kind, tuple(_point(trial, value(trial) or 0.0) for trial in trials),
                   context.colour(trials[0]), "dots")
            for kind, trials in kinds.items()
        ),
        height=230,
        short=True,
    )  # fmt: skip


def _point(trial: Trial, x: float) -> Point:
    found = trial.kpi
    y, se = (found.value or 0.0, found.se) if found else (0.0, None)
    half = half_width(se) if se else None
    error = f" ± {half:.3g}" if half else ""
    tip = f"{trial.label}\n{x:.3f}\nKPI {y:.4g}{error}".replace("-", "−")
    return Point(x, y, tip, y_low=y - half if half else None, y_high=y + half if half else None)


def _table(context: Context, kpi: KpiReport) -> Table:
    say = context.say
    head = (
        Column(say("column.predictor"), numeric=False),
        Column(say("column.statistic"), numeric=False),
        Column(say("column.correlation")),
        Column(say("column.interval")),
    )
    rows = tuple(_row(context, c) for c in kpi.correlations)
    return Table(say("kpi.table"), head, rows, headed=True)


def _row(context: Context, c: Correlation) -> tuple[Cell, ...]:
    name = {"spearman": "Spearman ρ", "kendall": "Kendall τ"}[c.statistic]
    interval = "–" if c.low is None else f"{minus(c.low, 2)} – {_or_dash(c.high)}"
    return (
        Cell(context.say(f"kpi.by_{c.predictor}")),
        Cell(name),
        Cell(_or_dash(c.value), c.value),
        Cell(interval, c.low),
    )
