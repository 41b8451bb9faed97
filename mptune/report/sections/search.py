"""The trials of the search: ranking, dimensions, cost, every trial, failures."""

from __future__ import annotations

import math
from operator import itemgetter

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import accuracy_at, front, grouped, loss_at, policy_kind
from mptune.report.blocks import (
    Axis,
    Block,
    Cell,
    Chart,
    ChartSeries,
    Details,
    Figures,
    Paragraph,
    Point,
    ReportSection,
    Table,
    percent_tick,
    power_tick,
    short,
)
from mptune.report.formatting import minus, per_token, power
from mptune.report.layout import SERIES
from mptune.report.sections.context import Context, chart, number, percent, policy_cell
from mptune.report.svg import Area, Drawing, Stroke
from mptune.trial import Trial

RANKED = 16
"""Trials in the figure of the ranking; its table has all."""

SLICES, CATEGORIES = 6, 8
"""Dimensions that have a figure, and choices of a dimension in it."""

FRONT = SERIES - 1
"""Colour of the front; a policy has it too if there are at least six kinds."""

SPARK_WIDTH, SPARK_HEIGHT = 72, 24

TONES = {"COMPLETE": "good", "PRUNED": "open", "FAIL": "bad"}

# --- ranking -------------------------------------------------------------------------------------


def ranking(context: Context) -> ReportSection | None:
    """Finished trials by LML, with intervals and the probability that each is the best."""
    say, title, selection = context.say, context.say("section.ranking"), context.report.selection
    if not context.ranked:
        if context.has_arms_only:
            return None
        return ReportSection("ranking", title, (Paragraph(say("ranking.empty")),))
    blocks: list[Block] = [Figures((_ranking_chart(context),)), ranking_table(context)]
    if selection is not None and selection.seed_sd is not None:
        low, high = (f"{sd:.2g}" for sd in selection.seed_sd)
        sd = low if low == high else say("ranking.seed_sd_range", low=low, high=high)
        blocks.append(Paragraph(say("ranking.seed_sd", sd=sd, n=selection.seed_runs), soft=True))
    elif selection is not None:
        blocks.append(Paragraph(say("ranking.seed_unknown"), soft=True))
    return ReportSection("ranking", title, tuple(blocks))


def _lml_column(context: Context) -> str:
    """Title of the scores of a ranking, as a key in `column.`: which noises the ± includes."""
    return "lml_total" if context.seeds_known else "lml_evaluation"


def _ranking_chart(context: Context) -> Chart:
    say, rows = context.say, context.ranked[:RANKED]
    series = []
    for y, trial in enumerate(rows):
        value, half = context.interval(trial)
        tip = f"{y + 1}. {trial.label}\n{context.score(value, half)}"
        candidate = context.candidates.get(trial.number)
        if candidate and candidate.probability is not None:
            probability = say.probability(candidate.probability)
            tip += f"\n{say('column.best_probability')}: {probability}"
        half = 0.0 if math.isnan(half) else half
        point = Point(value, y, tip, value - half, value + half)
        series.append(ChartSeries("", (point,), context.colour(trial), "dots"))
    hidden = len(context.ranked) - len(rows)
    return chart(
        say,
        "ranking",
        Axis(say(f"column.{_lml_column(context)}")),
        Axis(""),
        series,
        note=context.few,
        rows=context.labels(rows),
        more=say("figure.ranking.more", n=hidden) if hidden else "",
    )


def ranking_table(context: Context) -> Table:
    """The finished trials, best first, and models that only count at their places."""
    say, rows = context.say, []
    for place, trial in enumerate(context.ranked, start=1):
        result, candidate = trial.require_result(), context.candidates.get(trial.number)
        (value, half), expected, confirmed = context.interval(trial), None, None
        evaluation = lml_half_width(result.lml) if context.seeds_known else None
        probability = candidate.probability if candidate else None
        if candidate and candidate.expected is not None and candidate.half_width is not None:
            words = per_token(candidate.expected, candidate.half_width)
            expected = Cell(words, candidate.expected)
        if candidate and (found := candidate.confirmation):
            words = per_token(found.nats_per_token, found.half_width)
            searched = say("ranking.searched", score=minus(value, 3))
            confirmed = Cell(words, found.nats_per_token, title=searched)
        rows.append({
            "#": number(place, str),
            "<policy": policy_cell(trial),
            _lml_column(context): Cell(per_token(value, half), value),
            "evaluation": number(evaluation, "± {:.3f}".format),
            "best_probability": number(probability, say.probability),
            "on_front": number(candidate.on_front if candidate else None, say.probability),
            "expected": expected,
            "confirmed": confirmed,
            "bits": number(result.lml.bits_per_byte, "{:.3f}".format),
            "loss": number(loss_at(result, 0.15), "{:.3f}".format),
            "accuracy": number(accuracy_at(result, 0.15), percent),
            "parameters": number(trial.parameters or result.cost.parameters, say.count),
            "FLOPs": number(result.cost.flops, power),
            "time": number(result.cost.total_s, say.duration),
            "trial": number(trial.number, str),
        })  # fmt: skip
    chosen = context.found.recommended
    first = context.ranked.index(chosen) if chosen else None
    prepared = context.report.prepared
    for name, value in sorted((prepared.baselines if prepared else {}).items(), key=itemgetter(1)):
        at = sum(trial.nats_per_token > value for trial in context.ranked)
        score = Cell(minus(value, 3), value)
        rows.insert(at, {"<policy": Cell(say(f"ranking.{name}")), _lml_column(context): score})
        first = first if first is None or first < at else first + 1
    return context.table(say("section.ranking"), rows, first=first)


# --- dimensions ----------------------------------------------------------------------------------


def importance(context: Context) -> ReportSection | None:
    """The importance of each dimension of the search, and the scores along each."""
    say, rows = context.say, context.report.importance
    blocks: list[Block] = []
    if rows:
        points = tuple(
            Point(row.share, y, f"{row.name}\n{percent_tick(row.share)}\n"
                  + say("figure.importance.trials", n=row.trials))
            for y, row in enumerate(rows)
        )  # fmt: skip
        x = Axis(say("figure.importance.x"), low=0.0, tick=percent_tick)
        bars = [ChartSeries("", points, 0, "bars")]
        names = [row.name for row in rows]
        blocks.append(Figures((chart(say, "importance", x, Axis(""), bars, rows=names),)))
    names = [row.name for row in rows] or sorted({n for t in context.ranked for n in t.params})
    slices = [made for name in names[:SLICES] if (made := _slice(context, name))]
    if slices:
        blocks.append(Figures(tuple(slices)))
    title = say("section.importance")
    return ReportSection("importance", title, tuple(blocks)) if blocks else None


def _slice(context: Context, name: str) -> Chart | None:
    """Scores over one dimension: a point for each trial; None if it has one value only."""
    say = context.say
    trials = [trial for trial in context.ranked if name in trial.params]
    values = [trial.params[name] for trial in trials]
    if len(set(values)) < 2:
        return None
    are_numbers = all(isinstance(value, float) for value in values)
    lml, choices = Axis(say("axis.lml")), list(dict.fromkeys(map(str, values)))[:CATEGORIES]
    tips = [
        f"{name} = {f'{value:.4g}' if isinstance(value, float) else value}\n"
        f"{minus(trial.nats_per_token, 3)} {say('unit.nats_per_token')}\n"
        f"{say('column.trial')} {trial.number}, {trial.policy_label}"
        for trial, value in zip(trials, values, strict=True)
    ]
    if are_numbers:
        series = [
            ChartSeries("", (Point(value, t.nats_per_token, tip),), context.colour(t), "dots")
            for t, value, tip in zip(trials, values, tips, strict=True)
        ]
    else:
        points = (
            Point(t.nats_per_token, choices.index(str(value)), tip)
            for t, value, tip in zip(trials, values, tips, strict=True)
            if str(value) in choices
        )
        series = [ChartSeries("", tuple(points), 0, "dots")]
    file_name = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    log = are_numbers and min(values) > 0 and max(values) / min(values) > 30
    return chart(
        say,
        "slice",
        Axis(name, log=log) if are_numbers else lml,
        lml if are_numbers else Axis(""),
        series,
        name=f"slice-{file_name}",
        rows=() if are_numbers else [short(choice, 30) for choice in choices],
        height=200,
        short=True,
        dimension=name,
    )


# --- prediction ----------------------------------------------------------------------------------


def prediction(context: Context) -> ReportSection | None:
    """What the sampler's surrogate predicts of fixed rates and beta laws, and what was tried."""
    say, found = context.say, context.report.prediction
    if found is None:
        return None
    charts = []
    for name, tried in (("fixed", found.fixed), ("beta", found.beta)):
        series: list[ChartSeries] = []
        for line in found.lines:
            c = line.concentration
            if (c is None) != (name == "fixed"):
                continue
            points = (
                Point(rate, mean, context.score(mean, half), mean - half, mean + half)
                for rate, mean, half in line.points
            )
            label = "" if c is None else say("figure.predicted.concentration", c=f"{c:g}")
            series.append(ChartSeries(label, tuple(points), len(series)))
        dots = []
        for rate, of in tried:
            trial = context.trial(of)
            tip = f"{say('column.trial')} {of}, {trial.label}\n"
            score = context.score(*context.interval(trial))
            dots.append(Point(rate, trial.nats_per_token, tip + score))
        tried_label = say("figure.predicted.tried")
        series.append(ChartSeries(tried_label, tuple(dots), len(series), "dots"))
        charts.append(
            chart(
                say,
                "predicted",
                Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
                Axis(say("axis.lml")),
                series,
                name=f"predicted-{name}",
                height=240,
                policy=say(f"figure.predicted.{name}"),
                size=found.size_label,
            )
        )
    return ReportSection("prediction", say("section.prediction"), (Figures(tuple(charts)),))


# --- cost ----------------------------------------------------------------------------------------


def cost(context: Context) -> ReportSection | None:
    """Scores against training FLOPs, with the front: trials that no cheaper trial beats."""
    say = context.say
    if len(context.ranked) < 2:
        return None

    def point(trial: Trial) -> Point:
        spent = trial.require_result().cost
        tip = (
            f"{trial.label}\n{context.score(*context.interval(trial))}\n"
            f"{power(spent.flops)} FLOPs, {say.duration(spent.total_s)}"
        )
        return Point(spent.flops, trial.nats_per_token, tip)

    dots = (
        ChartSeries(kind, tuple(map(point, trials)), context.colour(trials[0]), "dots")
        for kind, trials in grouped(context.ranked, policy_kind).items()
    )
    line = tuple(
        Point(t.require_result().cost.flops, t.nats_per_token) for t in front(context.ranked)
    )
    steps = ChartSeries(say("figure.cost.front"), line, FRONT, "steps")
    x = Axis(say("axis.flops"), log=True, tick=power_tick)
    made = chart(say, "cost", x, Axis(say("axis.lml")), (steps, *dots))
    return ReportSection("cost", say("section.cost"), (Figures((made,)),))


# --- every trial ---------------------------------------------------------------------------------


def trials(context: Context) -> ReportSection | None:
    """All trials, in any state, with a small picture of the policy."""
    say, title = context.say, context.say("section.trials")
    if not context.report.trials:
        if context.has_arms_only:
            return None
        return ReportSection("trials", title, (Paragraph(say("trials.none")),))
    rows = []
    for trial in context.report.trials:
        rates = "–"
        means = [mean for _, mean, _ in trial.mask_rates]
        if means:
            begin, end = round(100 * means[0]), round(100 * means[-1])
            rates = f"{begin} %" if begin == end else f"{begin} → {end} %"
        picture, label = _spark(trial), f"{say('trials.spark_label')}: {rates}"
        mean_rate = sum(means) / len(means) if means else None
        asked = str((trial.asked or {}).get("why") or "")
        state = say.optional(f"state.{trial.state}", trial.state.lower())
        rungs = [
            say("trials.rung", value=minus(value, 3), progress=f"{100 * progress:g}")
            for progress, value in trial.rungs
        ]
        rows.append({
            "trial": number(trial.number, str),
            "<policy": policy_cell(trial),
            "<asked": Cell(asked.partition(":")[0], title=asked) if asked else None,
            "<rate_over_training": Cell(rates, mean_rate, drawing=picture, label=label),
            "<state": Cell(state, tone=TONES.get(trial.state, ""), title=trial.detail or ""),
            "lml": number(trial.nats_per_token if trial.result else None, lambda x: minus(x, 3)),
            "KPI": number(trial.kpi.value if trial.kpi else None, "{:.4g}".format),
            "<rungs": Cell(say.join(rungs)),
            "time": number(trial.seconds or None, say.duration),
        })  # fmt: skip
    table = context.table(title, rows, searchable=True, filters=("state",))
    return ReportSection("trials", title, (Paragraph(say("trials.spark"), soft=True), table))


def _spark(trial: Trial) -> Drawing | None:
    """The mask rate over training: its mean, and the band that contains 90 % of the draws."""
    if not trial.mask_rates:
        return None
    step = (SPARK_WIDTH - 2) / max(1, len(trial.mask_rates) - 1)
    low, mean, high = (
        [(1 + k * step, 1 + (SPARK_HEIGHT - 2) * (1 - rate)) for k, rate in enumerate(rates)]
        for rates in zip(*trial.mask_rates, strict=True)
    )
    band = Area((*low, *reversed(high)), "series-1", 0.25)
    return Drawing(SPARK_WIDTH, SPARK_HEIGHT, (band, Stroke(tuple(mean), "series-1", 1.8)))


def failures(context: Context) -> ReportSection | None:
    """Failed trials by reason, the most frequent first."""
    say = context.say
    groups = tuple(
        Details(
            say("failures.group", reason=say.optional(f"reason.{reason}", reason), n=len(failed)),
            tuple(
                say("failures.trial", number=t.number, label=t.label,
                    detail=t.detail or say("failures.no_detail"))
                for t in failed
            ),
        )
        for reason, failed in context.found.failures
    )  # fmt: skip
    return ReportSection("failures", say("section.failures"), groups) if groups else None
