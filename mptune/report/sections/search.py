"""The trials of the search: ranking, dimensions, cost, every trial, failures."""

from __future__ import annotations

import math

from mptune.analysis.ranking import accuracy_at, front, loss_at
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
from mptune.report.sections.context import (
    Context,
    by_kind,
    lml_column,
    lml_interval,
    number,
    percent,
    policy_cell,
)
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


def _ranking_chart(context: Context) -> Chart:
    say, rows, candidates = context.say, context.ranked[:RANKED], context.candidates
    hidden = len(context.ranked) - len(rows)
    series = []
    for y, trial in enumerate(rows):
        candidate = candidates.get(trial.number)
        value, half = lml_interval(trial, candidate)
        tip = f"{y + 1}. {trial.label}\n{context.score(value, half)}"
        if candidate and candidate.probability is not None:
            probability = say.probability(candidate.probability)
            tip += f"\n{say('column.best_probability')}: {probability}"
        half = 0.0 if math.isnan(half) else half
        point = Point(value, y, tip, value - half, value + half)
        series.append(ChartSeries("", (point,), context.colour(trial), "dots"))
    more = say("figure.ranking.more", n=hidden) if hidden else ""
    return Chart(
        name="ranking",
        title=say("figure.ranking.title"),
        caption=context.caption("ranking", more=more),
        x=Axis(say(f"column.{lml_column(candidates)}")),
        y=Axis(""),
        series=tuple(series),
        rows=tuple(context.labels(rows)),
    )


def ranking_table(context: Context) -> Table:
    """The finished trials, best first, with the score of counting symbols at its place."""
    say, candidates = context.say, context.candidates
    bits = any(t.require_result().lml.bits_per_byte is not None for t in context.ranked)
    confirmed = any(c.confirmation for c in candidates.values())
    column = lml_column(candidates)
    known = column == "lml_total"
    head = context.head(
        "#", "<policy", column,
        *(["evaluation", "best_probability", "expected"] if known else []),
        *(["confirmed"] if confirmed else []),
        *(["bits"] if bits else []),
        "loss", "accuracy", "parameters", "FLOPs", "time", "trial",
    )  # fmt: skip
    rows = []
    for place, trial in enumerate(context.ranked, start=1):
        result, candidate = trial.require_result(), candidates.get(trial.number)
        value, half = lml_interval(trial, candidate)
        cells = [number(place, str), policy_cell(trial), Cell(per_token(value, half), value)]
        if known:
            cells.append(number(lml_interval(trial)[1], "± {:.3f}".format))
            if candidate and candidate.expected is not None and candidate.half_width is not None:
                expected = per_token(candidate.expected, candidate.half_width)
                cells += [
                    number(candidate.probability or 0.0, say.probability),
                    Cell(expected, candidate.expected),
                ]
            else:
                cells += [Cell("–")] * 2
        if candidate and (found := candidate.confirmation):
            text = per_token(found.nats_per_token, found.half_width)
            searched = say("ranking.searched", score=minus(value, 3))
            cells.append(Cell(text, found.nats_per_token, title=searched))
        elif confirmed:
            cells.append(Cell("–"))
        if bits:
            cells.append(number(result.lml.bits_per_byte, "{:.3f}".format))
        cells += [
            number(loss_at(result, 0.15), "{:.3f}".format),
            number(accuracy_at(result, 0.15), percent),
            number(trial.parameters or result.cost.parameters, say.count),
            number(result.cost.flops, power),
            number(result.cost.total_s, say.duration),
            number(trial.number, str),
        ]
        rows.append(tuple(cells))
    chosen = context.found.recommended
    first = context.ranked.index(chosen) if chosen else None
    prepared = context.report.prepared
    if prepared is not None and (counting := prepared.counting) is not None:
        at = sum(trial.nats_per_token > counting for trial in context.ranked)
        name, score = Cell(say("ranking.counting")), Cell(minus(counting, 3), counting)
        rows.insert(at, (Cell("–"), name, score, *[Cell("–")] * (len(head) - 3)))
        first = first if first is None or first < at else first + 1
    return Table(say("section.ranking"), head, tuple(rows), first)


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
        bars = Chart(
            name="importance",
            title=say("figure.importance.title"),
            caption=say("figure.importance.caption"),
            x=Axis(say("figure.importance.x"), low=0.0, tick=percent_tick),
            y=Axis(""),
            series=(ChartSeries("", points, 0, "bars"),),
            rows=tuple(row.name for row in rows),
        )
        blocks.append(Figures((bars,)))
    names = [row.name for row in rows] or sorted({n for t in context.ranked for n in t.params})
    slices = [chart for name in names[:SLICES] if (chart := _slice(context, name))]
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
    lml, choices = Axis(say("axis.lml")), list[str]()
    if all(isinstance(value, float) for value in values):
        xs = [float(value) for value in values]
        x, y = Axis(name, log=min(xs) > 0 and max(xs) / min(xs) > 30), lml
        series = [
            ChartSeries("", (Point(at, t.nats_per_token, tip),), context.colour(t), "dots")
            for at, t in zip(xs, trials, strict=True)
            for tip in [_slice_tip(context, name, t)]
        ]
    else:
        x, y = lml, Axis("")
        choices = list(dict.fromkeys(map(str, values)))[:CATEGORIES]  # the best first
        points = tuple(
            Point(t.nats_per_token, choices.index(str(value)), _slice_tip(context, name, t))
            for value, t in zip(values, trials, strict=True)
            if str(value) in choices
        )
        series = [ChartSeries("", points, 0, "dots")]
    file_name = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return Chart(
        name=f"slice-{file_name}",
        title=name,
        caption=say("figure.slice.caption", name=name),
        x=x,
        y=y,
        series=tuple(series),
        rows=tuple(short(choice, 30) for choice in choices),
        height=200,
        short=True,
    )


def _slice_tip(context: Context, name: str, trial: Trial) -> str:
    say, value = context.say, trial.params[name]
    shown = f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return (
        f"{name} = {shown}\n{minus(trial.nats_per_token, 3)} {say('unit.nats_per_token')}\n"
        f"{say('column.trial')} {trial.number}, {trial.policy_label}"
    )


# --- prediction ----------------------------------------------------------------------------------


def prediction(context: Context) -> ReportSection | None:
    """What the sampler's surrogate predicts of fixed rates and beta laws, and what was tried."""
    say, found = context.say, context.report.prediction
    if found is None:
        return None
    charts = []
    for name, tried in (("fixed", found.fixed), ("beta", found.beta)):
        lines = [line for line in found.lines if (line.concentration is None) == (name == "fixed")]
        series = [
            ChartSeries(
                "" if c is None else say("figure.predicted.concentration", c=f"{c:g}"),
                tuple(
                    Point(rate, mean, context.score(mean, half), mean - half, mean + half)
                    for rate, mean, half in line.points
                ),
                colour,
            )
            for colour, line in enumerate(lines)
            for c in [line.concentration]
        ]
        dots = []
        for rate, of in tried:
            trial = context.trial(of)
            tip = f"{say('column.trial')} {of}, {trial.label}\n"
            score = context.score(*lml_interval(trial))
            dots.append(Point(rate, trial.nats_per_token, tip + score))
        series.append(ChartSeries(say("figure.predicted.tried"), tuple(dots), len(lines), "dots"))
        chart = Chart(
            name=f"predicted-{name}",
            title=say(f"figure.predicted.{name}"),
            caption=say("figure.predicted.caption", size=found.size_label),
            x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
            y=Axis(say("axis.lml")),
            series=tuple(series),
            height=240,
        )
        charts.append(chart)
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
            f"{trial.label}\n{context.score(*lml_interval(trial))}\n"
            f"{power(spent.flops)} FLOPs, {say.duration(spent.total_s)}"
        )
        return Point(spent.flops, trial.nats_per_token, tip)

    dots = (
        ChartSeries(kind, tuple(map(point, trials)), context.colour(trials[0]), "dots")
        for kind, trials in by_kind(context.ranked).items()
    )
    line = tuple(
        Point(t.require_result().cost.flops, t.nats_per_token) for t in front(context.ranked)
    )
    chart = Chart(
        name="cost",
        title=say("figure.cost.title"),
        caption=say("figure.cost.caption"),
        x=Axis(say("axis.flops"), log=True, tick=power_tick),
        y=Axis(say("axis.lml")),
        series=(ChartSeries(say("figure.cost.front"), line, FRONT, "steps"), *dots),
    )
    return ReportSection("cost", say("section.cost"), (Figures((chart,)),))


# --- every trial ---------------------------------------------------------------------------------


def trials(context: Context) -> ReportSection | None:
    """All trials, in any state, with a small picture of the policy."""
    say, rows = context.say, context.report.trials
    title = say("section.trials")
    if not rows:
        if context.has_arms_only:
            return None
        return ReportSection("trials", title, (Paragraph(say("trials.none")),))
    kpi = any(t.kpi and t.kpi.value is not None for t in rows)
    asked = any(map(_asked, rows))
    head = context.head(
        "trial", "<policy", *(["<asked"] if asked else []), "<rate_over_training",
        "<state", "lml", *(["KPI"] if kpi else []),
        "<rungs", "time",
    )  # fmt: skip
    cells = []
    for trial in rows:
        rates = "–"
        lml = trial.result.lml.nats_per_token if trial.result else None
        means = [mean for _, mean, _ in trial.mask_rates]
        if means:
            begin, end = round(100 * means[0]), round(100 * means[-1])
            rates = f"{begin} %" if begin == end else f"{begin} → {end} %"
        label = f"{say('trials.spark_label')}: {rates}"
        mean_rate = sum(means) / len(means) if means else None
        state = say.optional(f"state.{trial.state}", trial.state.lower())
        rungs = [
            say("trials.rung", value=minus(value, 3), progress=f"{100 * progress:.0f}")
            for progress, value in trial.rungs
        ]
        cells.append((
            number(trial.number, str),
            policy_cell(trial),
            *([Cell(_asked(trial).partition(":")[0] or "–", title=_asked(trial))] if asked else []),
            Cell(rates, mean_rate, drawing=_spark(trial), label=label),
            Cell(state, tone=TONES.get(trial.state, ""), title=trial.detail or ""),
            Cell("–" if lml is None else minus(lml, 3), lml),
            *([number(trial.kpi.value if trial.kpi else None, "{:.4g}".format)] if kpi else []),
            Cell(say.join(rungs)),
            number(trial.seconds or None, say.duration),
        ))  # fmt: skip
    table = Table(title, head, tuple(cells), searchable=True, filters=(4 if asked else 3,))
    return ReportSection("trials", title, (Paragraph(say("trials.spark"), soft=True), table))


def _asked(trial: Trial) -> str:
    """Why the sampler asked for the trial, as it says itself; empty where it does not."""
    return str((trial.asked or {}).get("why") or "")


def _spark(trial: Trial) -> Drawing | None:
    """The mask rate over training: its mean, and the band that contains 90 % of the draws."""
    if not trial.mask_rates:
        return None
    last = len(trial.mask_rates) - 1
    xs = [1 + k * (SPARK_WIDTH - 2) / max(1, last) for k in range(last + 1)]
    low, mean, high = (
        [
            (x, 1 + (SPARK_HEIGHT - 2) * (1 - rates[k]))
            for x, rates in zip(xs, trial.mask_rates, strict=True)
        ]
        for k in range(3)
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
