"""Scores beyond the study: other sizes, other data, the team's own KPI."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mptune.analysis.intervals import Condition, half_width, scores_by_condition, worst_domain
from mptune.analysis.kpi import KpiReport
from mptune.analysis.ranking import grouped, loss_at, policy_kind
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
    percent_tick,
)
from mptune.report.findings import weighted_words
from mptune.report.formatting import minus, per_token, rate
from mptune.report.language import Language
from mptune.report.layout import SERIES
from mptune.report.sections.context import Context, chart, number
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
        rows = [_extrapolated(law, e, place, say) for place, e in enumerate(law.extrapolation)]
        yield context.table(say("sizes.extrapolation"), rows, headed=True)


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
            cells = _extrapolated(law, each, place, say).values()
            words = ", ".join("–" if cell is None else cell.words for cell in cells)
            yield f"{say(f'column.size_{key}')}: {words}"


def _extrapolated(
    law: SizeLaw, found: Extrapolation, place: int, say: Language
) -> dict[str, Cell | None]:
    """One size: the value, its interval, how far it is outside, and what each form says of it."""
    by_form = (
        f"{say(f'sizes.{f.form}')} {_quantity(law, f.values[place])}"
        for f in law.forms
        if f.weight >= 0.1
    )
    words = say(f"sizes.{found.verdict.replace(' ', '_')}", factor=f"{found.beyond:.3g}")
    tone, at = "good" if found.verdict in ("inside", "agreed") else "open", found.at
    value = interval = None
    if at is not None:
        value = Cell(_quantity(law, at.value), at.value)
        interval = Cell(f"{_quantity(law, at.low)} – {_quantity(law, at.high)}", at.low)
    return {
        "parameters": number(found.parameters, say.count),
        f"size_{KEYS[law.what]}": value,
        "interval": interval,
        "beyond": Cell(words, found.beyond, tone=tone, below=", ".join(by_form) if at else ""),
    }


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

    curve = tuple(_law_point(law, value, say) for value in law.curve)
    series = [
        ChartSeries(say("sizes.average"), curve, 0, bold=True),
        ChartSeries("", tuple(map(measured, law.points)), 0, "dots"),
    ]
    named = tuple(_law_point(law, e.at, say) for e in law.extrapolation if e.at)
    if named:
        series.append(ChartSeries(say("sizes.named"), named, 4, "dots"))
    return chart(
        say,
        f"size_{key}",
        Axis(say("axis.parameters"), log=True, tick=say.tick),
        Axis(say(f"figure.size_{key}.y"), tick=percent_tick if key == "rate" else None),
        series,
        guides=(("y", 0.0),) if law.what == "gap" else (),
        of=law.of,
    )


def _law_point(law: SizeLaw, value: LawValue, say: Language) -> Point:
    tip = (
        f"{say.count(value.parameters)} {say('unit.parameters')}\n{_quantity(law, value.value)} "
        f"({_quantity(law, value.low)} – {_quantity(law, value.high)})"
    )
    return Point(value.parameters, value.value, tip, value.low, value.high)


# --- other data ----------------------------------------------------------------------------------


def robustness(context: Context) -> ReportSection | None:
    """The scores of trials and arms on every held-out domain, and with missing values."""
    say, compared = context.say, context.report.comparison
    entries = [
        (Cell(trial.policy_label, below=trial.size_label), trial, [trial.require_result()])
        for trial in context.ranked
    ]
    for name in compared.arms if compared else ():
        if compared and (runs := compared.finished(name)):
            results = [run.require_result() for run in runs]
            entries.append((Cell(name, tag=say("word.arm")), runs[0], results))
    scored = [(cell, trial, scores_by_condition(results)) for cell, trial, results in entries]
    conditions = {c: _condition(c, say) for c in (scored[0][2] if scored else ())}
    if len(conditions) < 2:
        return None

    best = {trial.number: label for label, trial in context.best_per_policy()}
    of_trials = scored[: len(context.ranked)]
    shown = [(best[t.number], t, scores) for _, t, scores in of_trials if t.number in best]
    shown = shown or [(cell.words, trial, scores) for cell, trial, scores in scored]
    series: list[ChartSeries] = []
    for label, trial, scores in shown[:SERIES]:
        points = []
        for y, (condition, name) in enumerate(conditions.items()):
            if condition in scores:
                score, half = scores[condition]
                tip = f"{label}\n{name}\n{context.score(score, half)}"
                points.append(Point(score, y, tip, score - half, score + half))
        colour = context.colour(trial)
        series.append(ChartSeries(label, tuple(points), colour, "dots", bold=not series))
    x = Axis(say("axis.lml_interval"))
    picture = chart(say, "robustness", x, Axis(""), series, rows=conditions.values())

    worst = [worst_domain(results) for *_, results in entries]
    rows = []
    for (cell, _, scores), lowest in zip(scored, worst, strict=True):
        row: dict[str, Cell | None] = {"<policy": cell}
        for condition, name in conditions.items():
            found = scores.get(condition)
            row[name] = found and Cell(per_token(*found), found[0])
        rows.append({**row, "<worst": lowest and Cell(lowest[0])})
    wanted = context.found.recommended
    first = context.ranked.index(wanted) if wanted else None
    table = context.table(say("section.robustness"), rows, first=first)
    blocks: list[Block] = [Figures((picture,)), table]
    by_worst = [(low[1], t) for low, t in zip(worst, context.ranked, strict=False) if low]
    selection = context.report.selection
    if selection and selection.chosen_by == "worst_domain":
        blocks.append(Paragraph(say("robustness.chosen_by_worst"), soft=True))
    elif selection and selection.weighted:
        parts = weighted_words(selection.weighted, say)
        blocks.append(Paragraph(say("robustness.chosen_by_weights", parts=parts), soft=True))
    elif by_worst:
        trial = max(by_worst, key=lambda pair: pair[0])[1]
        named = {"policy": trial.policy_label, "size": trial.size_label, "trial": trial.number}
        words = say("robustness.best_at_worst", **named)
        blocks.append(Paragraph(words, soft=True))
    return ReportSection("robustness", say("section.robustness"), tuple(blocks))


def _condition(condition: Condition, say: Language) -> str:
    """Label of a condition: in distribution, the domain, or the share of missing values."""
    name = condition.domain or say("robustness.home")
    if condition.kind == "missing":
        percent = f"{100 * condition.fraction:g}"
        name = say(f"robustness.missing_{condition.pattern}", percent=percent)
    groups = condition.few_groups
    return name if groups is None else say("robustness.few", name=name, n=groups)


# --- KPI -----------------------------------------------------------------------------------------


def kpi(context: Context) -> ReportSection | None:
    """The team's own KPI over the LML, and over the loss at 15 %."""
    say, found = context.say, context.report.kpi
    if found is None:
        return None
    scored = [t for t in context.ranked if t.kpi and t.kpi.value is not None]
    losses = {t.number: loss_at(t.require_result(), 0.15) for t in scored}
    charts = []
    for predictor, axis, values in (
        ("lml", "axis.lml", {t.number: t.nats_per_token for t in scored}),
        ("loss", "axis.loss", {n: loss for n, loss in losses.items() if loss is not None}),
    ):
        series = [
            ChartSeries(
                kind,
                tuple(_kpi_point(trial, values[trial.number]) for trial in trials),
                context.colour(trials[0]),
                "dots",
            )
            for kind, trials in grouped(
                (t for t in scored if t.number in values), policy_kind
            ).items()
        ]
        if series:
            x, y = Axis(say(axis)), Axis(found.name)
            key, kpi_name = f"kpi_{predictor}", found.name
            charts.append(chart(say, key, x, y, series, height=230, short=True, kpi=kpi_name))
    blocks: list[Block] = [Paragraph(_kpi_answer(context, found))]
    if charts:
        blocks.append(Figures(tuple(charts)))
    if found.correlations:
        names = {"spearman": "Spearman ρ", "kendall": "Kendall τ"}
        rows = [
            {
                "<predictor": Cell(say(f"kpi.by_{c.predictor}")),
                "<statistic": Cell(names[c.statistic]),
                "correlation": number(c.value, partial(minus, digits=2)),
                "interval": Cell(f"{_or_dash(c.low)} – {_or_dash(c.high)}", c.low)
                if c.low is not None
                else None,
            }
            for c in found.correlations
        ]
        blocks.append(context.table(say("kpi.table"), rows, headed=True))
    if found.failed:
        blocks.append(Paragraph(say("kpi.failed", n=found.failed), soft=True))
    return ReportSection("kpi", say("section.kpi", name=found.name), tuple(blocks))


def _kpi_point(trial: Trial, x: float) -> Point:
    """The KPI of a trial that has one, with its 95 % interval if it gave an error."""
    assert trial.kpi is not None
    y, se = trial.kpi.value or 0.0, trial.kpi.se
    half = half_width(se) if se else None
    error = f" ± {half:.3g}" if half else ""
    tip = f"{trial.label}\n{x:.3f}\nKPI {y:.4g}{error}".replace("-", "−")
    return Point(x, y, tip, *((y - half, y + half) if half else ()))


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
