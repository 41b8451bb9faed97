"""Comparison of policies: paired seeds, scores at each mask rate, learning curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from mptune.analysis.arms import Difference
from mptune.analysis.comparison import ComparisonReport, assignments
from mptune.analysis.compute import UNITS, Unit
from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import is_fixed_15
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
    power_tick,
)
from mptune.report.formatting import interval, minus
from mptune.report.language import Language
from mptune.report.layout import SERIES
from mptune.report.sections.context import Context, chart, estimate, number
from mptune.report.verdicts import factor, p_value, plus_minus
from mptune.trial import CurvePoint, LearningPoint, Trial

TONES = {"better": "good", "worse": "bad", "undecided": "open", "equivalent": ""}

# --- paired seeds --------------------------------------------------------------------------------


def comparison(context: Context) -> ReportSection | None:
    """The differences on paired seeds with their intervals, in every unit."""
    found = context.report.comparison
    if found is None or not found.differences:
        return None
    blocks: list[Block] = [Figures((_differences(context, found),)), _verdicts(context, found)]
    baselines = context.report.prepared.baselines if context.report.prepared else {}
    if context.has_arms_only and baselines:
        scores = [found.score(arm) for arm in found.arms if found.finished(arm)]
        low, high = minus(min(scores), 3), minus(max(scores), 3)
        counted = ", ".join(
            f"{context.say(f'ranking.{name}')} {minus(value, 3)}"
            for name, value in baselines.items()
        )
        words = context.say("ranking.counting_arms", counting=counted, low=low, high=high)
        blocks.append(Paragraph(words, soft=True))
    if found.runs:
        blocks.append(_runs(context, found))
    if found.values:
        blocks.append(_values(context, found))
    if found.compute:
        blocks.append(_compute(context, found))
    title = context.say("section.comparison", baseline=found.baseline)
    return ReportSection("comparison", title, tuple(blocks))


def _differences(context: Context, found: ComparisonReport) -> Chart:
    say, baseline = context.say, found.baseline
    series = []
    for row, d in enumerate(found.differences):
        points = tuple(_of_seeds(context, found, d, row))
        colour = context.colour(found.arms[d.arm][0])
        series.append(ChartSeries("", points, colour, "dots"))
    return chart(
        say,
        "comparison",
        Axis(say("figure.comparison.x", baseline=baseline)),
        Axis(""),
        series,
        note=context.few,
        rows=[d.arm for d in found.differences],
        guides=(("x", 0.0),),
        baseline=baseline,
        level=f"{100 * found.level:g}",
    )


def _of_seeds(
    context: Context, found: ComparisonReport, d: Difference, row: int
) -> Iterator[Point]:
    """The difference of each seed that both arms have, then their mean with its interval."""
    say, unit = context.say, context.say("unit.nats_per_sequence")
    arm, baseline = (
        {t.seed: t.require_result().lml.nats_per_sequence for t in found.finished(name)}
        for name in (d.arm, d.baseline)
    )
    for seed in sorted(seed for seed in arm.keys() & baseline.keys() if seed is not None):
        value = arm[seed] - baseline[seed]
        yield Point(value, row, f"{say('word.seed')} {seed}\n{minus(value, 2)} {unit}", faint=True)
    tip = f"{d.arm} − {d.baseline}\n{plus_minus(d)} {unit}\n{p_value(d.p_value)}"
    yield Point(d.nats_per_sequence, row, tip, d.low, d.high)


def _verdicts(context: Context, found: ComparisonReport) -> Table:
    say, rows = context.say, []
    selection = {s.arm: s for s in found.selection}

    def chances(arm: str) -> dict[str, Cell | None]:
        chosen = selection.get(arm)
        return {
            "best_probability": number(chosen.probability if chosen else None, say.probability),
            "regret": number(chosen.expected_regret if chosen else None, "{:.2g}".format),
        }

    for d in found.differences:
        tokens = d.nats_per_sequence / d.nats_per_token if d.nats_per_token else math.inf
        rows.append({
            "<arm": Cell(d.arm),
            "<verdict": Cell(say(f"verdict.label.{d.verdict}"), tone=TONES[d.verdict]),
            "unit.nats_per_sequence": Cell(plus_minus(d), d.nats_per_sequence),
            "unit.nats_per_token": Cell(plus_minus(d, tokens), d.nats_per_token),
            "bits_difference": number(d.bits_per_byte, partial(minus, digits=4)),
            "p": Cell(p_value(d.p_value).removeprefix("p ").removeprefix("= "), d.p_value),
            "seeds": number(d.seeds, str),
            **chances(d.arm),
        })  # fmt: skip
    if found.baseline in selection:
        baseline = Cell(found.baseline, tag=say("word.baseline"))
        rows.append({"<arm": baseline, "<verdict": Cell(""), **chances(found.baseline)})
    return context.table(say("section.comparison", baseline=found.baseline), rows)


def _runs(context: Context, found: ComparisonReport) -> Table:
    """Failures of each arm, and the spread of its runs over seeds."""
    say, rows = context.say, []
    for arm in found.runs:
        verdict = say(f"arms.failures.{_key(arm.verdict)}") if arm.verdict else "–"
        rows.append({
            "<arm": Cell(arm.arm),
            "failed": Cell(f"{arm.failed} / {arm.runs}", arm.failed),
            "failure_share": Cell(f"{100 * arm.low:.0f} – {100 * arm.high:.0f} %", arm.high),
            "<failure_verdict": Cell(verdict),
            "seed_sd": number(arm.seed_sd, "{:.2g}".format),
            "skewness": number(arm.skewness, partial(minus, digits=1)),
        })  # fmt: skip
    return context.table(say("arms.runs_title"), rows, headed=True)


def _values(context: Context, found: ComparisonReport) -> Table:
    """What each arm took for the searched dimensions of training, and why."""
    say, rows = context.say, []
    for arm in found.values:
        scores = (say("arms.failed") if s is None else minus(s, 3) for _, s in arm.tried)
        tried = [
            say("arms.tried", value=f"{rate:g}", score=score)
            for (rate, _), score in zip(arm.tried, scores, strict=True)
        ]
        origin = say(f"arms.source.{_key(arm.source)}", trial=arm.trial, tried=say.join(tried))
        values = Cell(assignments(arm.values))
        rows.append({"<arm": Cell(arm.arm), "<values": values, "<origin": Cell(origin)})
    return context.table(say("arms.values_title"), rows, headed=True)


def _key(words: str) -> str:
    return words.replace(" ", "_")


def _compute(context: Context, found: ComparisonReport) -> Table:
    """The share of an arm's compute that another arm needs for the same score."""
    say, rows = context.say, []
    for c in found.compute:
        share = {
            "factor": f"{factor(c.factor)} ×",
            "at most": f"≤ {factor(c.high)} ×",
            # Of an arm that gets there, a lower bound of its cost would read as a weakness.
            "at least": "–" if c.probability_reached > 0.5 else f"≥ {factor(c.low)} ×",
            "unknown": "–",
        }[c.reading]
        low = "0" if c.low is None else factor(c.low)
        high = "∞" if c.high is None else factor(c.high)
        rows.append({
            "<arm": Cell(c.arm),
            "<reaches": Cell(c.reaches),
            "<unit": Cell(say(f"unit.{c.unit}")),
            "share": Cell(share, c.factor),
            "interval": Cell(f"{low} – {high}", c.low or 0.0),
            "reached_probability": number(c.probability_reached, say.probability),
        })  # fmt: skip
    return context.table(say("compute.title"), rows, headed=True)


# --- scores at each mask rate --------------------------------------------------------------------


def curves(context: Context) -> ReportSection | None:
    """S(r), the score at every mask rate, by policy; the area is the LML."""
    best = [(label, t) for label, t in context.best_per_policy() if len(_curve(t)) > 1][:SERIES]
    if not best:
        return None
    trials = [trial for _, trial in best]
    labels = context.labels(trials)
    of_trials = list(zip(labels, map(_curve, trials), strict=True))
    charts = [curve_chart(context.say, of_trials, list(map(context.colour, trials)), context.few)]
    if len(best) > 1:
        charts.append(_curve_differences(context, labels, trials))
    return ReportSection("curves", context.say("section.curves"), (Figures(tuple(charts)),))


def _curve(trial: Trial) -> list[CurvePoint]:
    return sorted(trial.require_result().lml.curve, key=lambda point: point.mask_rate)


def _curve_tip(say: Language, label: str, rate: float, value: float, half: float) -> str:
    unit = say("unit.nats_per_masked")
    return f"{label}\nr = {percent_tick(rate)}\n{interval(value, half, 3)} {unit}"


def curve_chart(
    say: Language,
    curves: Sequence[tuple[str, Sequence[CurvePoint]]],
    colours: Sequence[int],
    note: str = "",
) -> Chart:
    """Curves S(r) with their labels, the best one first: the area above it is shaded."""
    series: list[ChartSeries] = []
    for (label, curve), colour in zip(curves, colours, strict=True):
        points = []
        for p in curve:
            tip = _curve_tip(say, label, p.mask_rate, p.nats_per_token, half_width(p.se))
            points.append(estimate(p.mask_rate, p.nats_per_token, p.se, tip))
        first = not series
        series.append(ChartSeries(label, tuple(points), colour, area=first, bold=first))
    x = Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick)
    y = Axis(say("figure.curve.y"), high=0.0)
    return chart(say, "curve", x, y, series, note=note, height=300, best=curves[0][0])


def _curve_differences(context: Context, labels: Sequence[str], trials: Sequence[Trial]) -> Chart:
    """The curves minus that of fixed 15 %, or of the last policy."""
    say = context.say
    reference = next((trial for trial in trials if is_fixed_15(trial.policy)), trials[-1])
    rates = [p.mask_rate for p in _curve(reference)]
    scores = [p.nats_per_token for p in _curve(reference)]
    series: list[ChartSeries] = []
    for label, trial in zip(labels, trials, strict=True):
        points = []
        for p in _curve(trial):
            gain = p.nats_per_token - float(np.interp(p.mask_rate, rates, scores))
            tip = _curve_tip(say, label, p.mask_rate, gain, math.nan)
            points.append(Point(p.mask_rate, gain, tip))
        colour, first = context.colour(trial), not series
        series.append(ChartSeries(label, tuple(points), colour, bold=first))
    return chart(
        say,
        "curve_difference",
        Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        Axis(say("figure.curve_difference.y")),
        series,
        guides=(("x", 0.15), ("y", 0.0)),
        height=240,
        reference=labels[trials.index(reference)],
    )


# --- learning curves -----------------------------------------------------------------------------


def learning(context: Context) -> ReportSection | None:
    """Learning curves over tokens, FLOPs and seconds.

    They are means of the arms over their seeds, or those of the best trial of each policy if no
    arms were compared.
    """
    say, found = context.say, context.report.comparison
    if found and any(len(points) > 1 for points in found.learning.values()):
        learners = [
            (name, context.colour(found.arms[name][0]), points)
            for name, points in found.learning.items()
        ]
    else:
        learners = [
            (label, context.colour(trial), trial.learning or trial.require_result().learning)
            for label, trial in context.best_per_policy()
        ]
    learners = [learner for learner in learners if len(learner[2]) > 1][:SERIES]
    if not learners:
        return None
    names = [say(f"unit.{unit}") for unit in UNITS]
    charts = [
        _learning_chart(context, learners, unit, name)
        for unit, name in zip(UNITS, names, strict=True)
    ]
    figures = Figures(tuple(charts), tuple(names), say("figure.learning.choose"))
    return ReportSection("learning", say("section.learning"), (figures,))


def _learning_chart(
    context: Context,
    learners: Sequence[tuple[str, int, Sequence[LearningPoint]]],
    unit: Unit,
    unit_name: str,
) -> Chart:
    """Learning curves, each with its label and its colour, over the cost in one unit."""
    say = context.say
    series: list[ChartSeries] = []
    words = {
        "tokens": lambda tokens: f"{say.count(tokens)} {unit_name}",
        "flops": lambda flops: f"{power_tick(flops)} FLOPs",
        "seconds": say.duration,
    }[unit]
    for label, colour, curve in learners:
        points = []
        for p in sorted(curve, key=lambda p: p.progress):
            spent, score = float(getattr(p, unit)), p.nats_per_token
            tip = f"{label}\n{words(spent)}\n{context.score(score, half_width(p.se))}"
            points.append(estimate(spent, score, p.se, tip))
        first = not series
        series.append(ChartSeries(label, tuple(points), colour, markers=True, bold=first))
    costs = [point.x for each in series for point in each.points if point.x > 0]
    log = bool(costs) and max(costs) / min(costs) > 20
    tick = {"tokens": say.tick, "flops": power_tick, "seconds": None}[unit]
    x, y = Axis(say(f"axis.{unit}"), log=log, tick=tick), Axis(say("axis.lml"))
    name = f"learning-{unit}"
    return chart(say, "learning", x, y, series, name=name, note=context.few, unit=unit_name)
