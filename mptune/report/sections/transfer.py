"""Scores beyond the study: other sizes, other data, the team's own KPI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from mptune.analysis.intervals import half_width
from mptune.analysis.kpi import KpiReport
from mptune.analysis.ranking import loss_at
from mptune.analysis.robustness import Condition, Robustness, RobustnessRow
from mptune.analysis.sizes import BySize, Extrapolation, LawValue, SizeLaw, SizePoint
from mptune.report.blocks import (
    Axis,
    Block,
    Cell,
    Chart,
    ChartSeries,
    Figures,
    Paragraph,
    Point,
    ReportSection,
    Table,
    percent_tick,
)
from mptune.report.formatting import minus, per_token, rate
from mptune.report.language import Language
from mptune.report.layout import SERIES
from mptune.report.sections.context import Context, by_kind, number
from mptune.trial import Trial

KEYS = {"best rate": "rate", "gap": "gap"}
"""Quantity of a fit over size -> its key in `lang/`."""

# --- sizes ---------------------------------------------------------------------------------------


def sizes(context: Context) -> ReportSection | None:
    """The best mask rate and the LML gap as functions of size and budget."""
    found = context.report.by_size
    if found is None:
        return None
    blocks: list[Block] = []
    for key, law, why in _laws(found):
        if law is not None:
            blocks += _law(context, law)
        elif why:
            blocks.append(Paragraph(context.say(f"sizes.missing_{key}", why=why), soft=True))
    return ReportSection("sizes", context.say("section.sizes"), tuple(blocks)) if blocks else None


def _laws(found: BySize) -> Iterator[tuple[str, SizeLaw | None, str]]:
    """Both laws, each with its key in `lang/` and the reason if it is missing."""
    yield "rate", found.best_rate, found.best_rate_missing
    yield "gap", found.gap, found.gap_missing


def _law(context: Context, law: SizeLaw) -> Iterator[Block]:
    say = context.say
    yield Figures((_law_chart(law, say),))
    runs = sum(point.runs for point in law.points)
    matters = say("sizes.matters" if law.size_matters else "sizes.no_matter")
    forms = ", ".join(f"{say(f'sizes.{f.form}')} {100 * f.weight:.0f} %" for f in law.forms)
    yield Paragraph(say("sizes.law", forms=forms, n=runs, matters=matters), soft=True)
    if law.left_out is not None:
        left = law.left_out
        low, high, value = (_quantity(law, x) for x in (left.low, left.high, law.points[-1].value))
        key = "sizes.covered" if law.covered else "sizes.not_covered"
        size = say.count(left.parameters)
        yield Paragraph(say(key, size=size, low=low, high=high, value=value), soft=True)
    if law.extrapolation:
        head = context.head("parameters", f"size_{KEYS[law.what]}", "interval", "beyond")
        rows = tuple(_extrapolated(law, e, place, say) for place, e in enumerate(law.extrapolation))
        yield Table(say("sizes.extrapolation"), head, rows, headed=True)


def at_sizes(found: BySize | None, say: Language) -> Iterator[str]:
    """What the laws over size say of the sizes that the user names, or why they say nothing."""
    if found is None:
        yield say("sizes.none")
        return
    for key, law, why in _laws(found):
        if law is None:
            yield say(f"sizes.missing_{key}", why=why)
            continue
        for place, each in enumerate(law.extrapolation):
            words = ", ".join(cell.words for cell in _extrapolated(law, each, place, say))
            yield f"{say(f'column.size_{key}')}: {words}"


def _extrapolated(
    law: SizeLaw, found: Extrapolation, place: int, say: Language
) -> tuple[Cell, ...]:
    """One size: the value, its interval, how far it is outside, and what each form says of it."""
    by_form = (
        f"{say(f'sizes.{f.form}')} {_quantity(law, f.values[place])}"
        for f in law.forms
        if f.weight >= 0.1
    )
    words = say(f"sizes.{found.verdict.replace(' ', '_')}", factor=f"{found.beyond:.3g}")
    tone = "good" if found.verdict in ("inside", "agreed") else "open"
    at, size = found.at, number(found.parameters, say.count)
    if at is None:
        return size, Cell("–"), Cell("–"), Cell(words, found.beyond, tone=tone)
    return (
        size,
        Cell(_quantity(law, at.value), at.value),
        Cell(f"{_quantity(law, at.low)} – {_quantity(law, at.high)}", at.low),
        Cell(words, found.beyond, tone=tone, below=", ".join(by_form)),
    )


def _quantity(law: SizeLaw, value: float) -> str:
    return rate(value) if law.what == "best rate" else minus(value, 3)


def _law_chart(law: SizeLaw, say: Language) -> Chart:
    """The law with its interval, and what was measured."""
    key = KEYS[law.what]

    def measured(p: SizePoint) -> Point:
        tip = (
            f"{say.count(p.parameters)} {say('unit.parameters')}\n{_quantity(law, p.value)}\n"
            f"{say('sizes.runs', n=p.runs)}"
        )
        return Point(p.parameters, p.value, tip, p.low, p.high)

    named = [_law_point(law, e.at, say) for e in law.extrapolation if e.at]
    return Chart(
        name=f"size-{key}",
        title=say(f"figure.size_{key}.title", of=law.of),
        caption=say(f"figure.size_{key}.caption", of=law.of),
        x=Axis(say("axis.parameters"), log=True, tick=say.tick),
        y=Axis(say(f"figure.size_{key}.y"), tick=percent_tick if key == "rate" else None),
        series=(
            ChartSeries(
                say("sizes.average"),
                tuple(_law_point(law, v, say) for v in law.curve),
                0,
                bold=True,
            ),
            ChartSeries("", tuple(measured(p) for p in law.points), 0, "dots"),
            *([ChartSeries(say("sizes.named"), tuple(named), 4, "dots")] if named else ()),
        ),
        guides=(("y", 0.0),) if law.what == "gap" else (),
    )


def _law_point(law: SizeLaw, value: LawValue, say: Language) -> Point:
    tip = (
        f"{say.count(value.parameters)} {say('unit.parameters')}\n{_quantity(law, value.value)} "
        f"({_quantity(law, value.low)} – {_quantity(law, value.high)})"
    )
    return Point(value.parameters, value.value, tip, value.low, value.high)


# --- other data ----------------------------------------------------------------------------------


def robustness(context: Context) -> ReportSection | None:
    """The scores on every held-out domain, and with missing values."""
    say, found = context.say, context.report.robustness
    if found is None:
        return None
    blocks: list[Block] = [
        Figures((_robustness_chart(context, found),)),
        _robustness_table(context, found),
    ]
    if found.chosen_by_worst:
        blocks.append(Paragraph(say("robustness.chosen_by_worst"), soft=True))
    elif found.best_at_worst is not None:
        best = context.trial(found.best_at_worst)
        words = say(
            "robustness.best_at_worst",
            policy=best.policy_label,
            size=best.size_label,
            trial=best.number,
        )
        blocks.append(Paragraph(words, soft=True))
    return ReportSection("robustness", say("section.robustness"), tuple(blocks))


def _condition(condition: Condition, say: Language) -> str:
    """Label of a condition: in distribution, the domain, or the share of missing values."""
    name = say("robustness.home") if condition.kind == "home" else condition.name
    if condition.kind == "missing" and condition.fraction is not None:
        pattern = condition.pattern or "random"
        name = say(f"robustness.missing_{pattern}", percent=f"{100 * condition.fraction:g}")
    groups = condition.few_groups
    return name if groups is None else say("robustness.few", name=name, n=groups)


def _robustness_chart(context: Context, found: Robustness) -> Chart:
    """The best trial of each policy; the arms if only they were scored."""
    say = context.say
    by_trial = {row.trial: row for row in found.rows if row.trial is not None}
    shown = [
        (label, context.colour(trial), by_trial[trial.number])
        for label, trial in context.best_per_policy()
    ]
    arms = context.report.comparison.arms if context.report.comparison else {}
    if not shown:
        rows = ((row, arms.get(row.arm or "")) for row in found.rows)
        shown = [(r.arm or "", context.colour(arm[0]) if arm else 0, r) for r, arm in rows]
    return Chart(
        name="robustness",
        title=say("figure.robustness.title"),
        caption=say("figure.robustness.caption"),
        x=Axis(say("axis.lml_interval")),
        y=Axis(""),
        series=tuple(
            ChartSeries(label, tuple(_robustness_points(context, found.conditions, row)), colour,
                   "dots", bold=k == 0)
            for k, (label, colour, row) in enumerate(shown[:SERIES])
        ),
        rows=tuple(_condition(c, say) for c in found.conditions),
    )  # fmt: skip


def _robustness_points(
    context: Context, conditions: Sequence[Condition], row: RobustnessRow
) -> Iterator[Point]:
    scores = {s.name: s for s in row.scores}
    for y, condition in enumerate(conditions):
        score = scores.get(condition.name)
        if score is not None:
            value, half = score.nats_per_token, score.half_width
            name = row.arm or context.trial(row.trial).label
            tip = f"{name}\n{_condition(condition, context.say)}\n{context.score(value, half)}"
            yield Point(value, y, tip, value - half, value + half)


def _robustness_table(context: Context, found: Robustness) -> Table:
    say, rows = context.say, []
    domains = any(row.worst_domain for row in found.rows)
    conditions = [_condition(c, say) for c in found.conditions]
    head = context.head("<policy", *conditions, *(["<worst"] if domains else []))
    for row in found.rows:
        scores = {s.name: s for s in row.scores}
        cells = [
            Cell(per_token(s.nats_per_token, s.half_width), s.nats_per_token) if s else Cell("–")
            for s in (scores.get(c.name) for c in found.conditions)
        ]
        if row.arm is None:
            trial = context.trial(row.trial)
            name = Cell(trial.policy_label, below=trial.size_label)
        else:
            name = Cell(row.arm, tag=say("word.arm"))
        rows.append((name, *cells, *([Cell(row.worst_domain or "–")] if domains else [])))
    wanted = context.found.recommended.number if context.found.recommended else None
    first = next((k for k, r in enumerate(found.rows) if r.trial == wanted), None)
    return Table(say("section.robustness"), head, tuple(rows), first)


# --- KPI -----------------------------------------------------------------------------------------


def kpi(context: Context) -> ReportSection | None:
    """The team's own KPI over the LML, and over the loss at 15 %."""
    say, found = context.say, context.report.kpi
    if found is None:
        return None
    scored = [t for t in context.ranked if t.kpi and t.kpi.value is not None]
    losses = {t.number: loss_at(t.require_result(), 0.15) for t in scored}
    charts = [
        chart
        for predictor, axis, values in (
            ("lml", "axis.lml", {t.number: t.nats_per_token for t in scored}),
            ("loss", "axis.loss", {n: loss for n, loss in losses.items() if loss is not None}),
        )
        if (chart := _kpi_chart(context, found.name, scored, predictor, axis, values))
    ]
    blocks: list[Block] = [Paragraph(_kpi_answer(context, found))]
    if charts:
        blocks.append(Figures(tuple(charts)))
    if found.correlations:
        names = {"spearman": "Spearman ρ", "kendall": "Kendall τ"}
        rows = tuple(
            (
                Cell(say(f"kpi.by_{c.predictor}")),
                Cell(names[c.statistic]),
                number(c.value, partial(minus, digits=2)),
                Cell("–" if c.low is None else f"{minus(c.low, 2)} – {_or_dash(c.high)}", c.low),
            )
            for c in found.correlations
        )
        head = context.head("<predictor", "<statistic", "correlation", "interval")
        blocks.append(Table(say("kpi.table"), head, rows, headed=True))
    if found.failed:
        blocks.append(Paragraph(say("kpi.failed", n=found.failed), soft=True))
    return ReportSection("kpi", say("section.kpi", name=found.name), tuple(blocks))


def _kpi_answer(context: Context, found: KpiReport) -> str:
    """Which of the two scores predicts the KPI better, and whether that is certain."""
    say = context.say
    if found.better is None or found.difference is None:
        return say("kpi.unknown", n=found.trials)
    low, high = found.difference_low, found.difference_high
    if found.difference <= 0:
        low, high = (None if end is None else -end for end in (high, low))
    return say(
        f"kpi.{'certain' if found.certain else 'uncertain'}",
        better=say(f"kpi.by_{found.better}"),
        difference=minus(abs(found.difference), 2),
        low=_or_dash(low),
        high=_or_dash(high),
        n=found.trials,
    )


def _or_dash(value: float | None) -> str:
    return "–" if value is None else minus(value, 2)


def _kpi_chart(
    context: Context,
    name: str,
    scored: Sequence[Trial],
    predictor: str,
    axis: str,
    values: dict[int, float],
) -> Chart | None:
    """The KPI over one predictor: `values` by trial number; None without any."""

    def point(trial: Trial) -> Point:
        x, found = values[trial.number], trial.kpi
        y, se = (found.value or 0.0, found.se) if found else (0.0, None)
        half = half_width(se) if se else None
        error = f" ± {half:.3g}" if half else ""
        tip = f"{trial.label}\n{x:.3f}\nKPI {y:.4g}{error}".replace("-", "−")
        low, high = (y - half, y + half) if half else (None, None)
        return Point(x, y, tip, low, high)

    if not values:
        return None
    kinds = by_kind(trial for trial in scored if trial.number in values)
    return Chart(
        name=f"kpi-{predictor}",
        title=context.say(f"figure.kpi_{predictor}.title"),
        caption=context.say(f"figure.kpi_{predictor}.caption", name=name),
        x=Axis(context.say(axis)),
        y=Axis(name),
        series=tuple(
            ChartSeries(kind, tuple(map(point, trials)), context.colour(trials[0]), "dots")
            for kind, trials in kinds.items()
        ),
        height=230,
        short=True,
    )
