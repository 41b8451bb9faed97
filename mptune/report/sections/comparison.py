"""Comparison of policies: paired seeds, scores at each mask rate, learning curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from mptune.analysis import Difference
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
from mptune.report.sections.context import Context, estimate, number
from mptune.report.verdicts import factor, p_value
from mptune.trial import CurvePoint, LearningPoint, Trial

TONES = {"better": "good", "worse": "bad", "undecided": "open", "equivalent": ""}

# --- paired seeds --------------------------------------------------------------------------------


def comparison(context: Context) -> ReportSection | None:
    """The differences on paired seeds with their intervals, in every unit."""
    found = context.report.comparison
    if found is None or not found.differences:
        return None
    blocks: list[Block] = [Figures((_differences(context, found),)), _verdicts(context, found)]
    counting = context.report.prepared.counting if context.report.prepared else None
    if context.has_arms_only and counting is not None:
        scores = [found.score(arm) for arm in found.arms if found.finished(arm)]
        low, high, counted = (minus(x, 3) for x in (min(scores), max(scores), counting))
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
    colours = {name: context.colour(arm[0]) for name, arm in found.arms.items() if arm}
    return Chart(
        name="comparison",
        title=say("figure.comparison.title", baseline=baseline),
        caption=context.caption("comparison", baseline=baseline, level=f"{100 * found.level:g}"),
        x=Axis(say("figure.comparison.x", baseline=baseline)),
        y=Axis(""),
        series=tuple(
            ChartSeries("", tuple(_of_seeds(context, found, d, row)), colours[d.arm], "dots")
            for row, d in enumerate(found.differences)
        ),
        rows=tuple(d.arm for d in found.differences),
        guides=(("x", 0.0),),
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
    mean = interval(d.nats_per_sequence, d.half_width)
    tip = f"{d.arm} − {d.baseline}\n{mean} {unit}\n{p_value(d.p_value)}"
    yield Point(d.nats_per_sequence, row, tip, d.low, d.high)


def _verdicts(context: Context, found: ComparisonReport) -> Table:
    say = context.say
    bits = any(d.bits_per_byte is not None for d in found.differences)
    selection = {s.arm: s for s in found.selection}
    head = context.head(
        "<arm", "<verdict", "unit.nats_per_sequence", "unit.nats_per_token",
        *(["bits_difference"] if bits else []), "p", "seeds", "best_probability", "regret",
    )  # fmt: skip

    def chances(arm: str) -> list[Cell]:
        chosen = selection.get(arm)
        return [
            number(chosen.probability if chosen else None, say.probability),
            number(chosen.expected_regret if chosen else None, "{:.2g}".format),
        ]

    rows = []
    for d in found.differences:
        per_sequence = d.nats_per_token / d.nats_per_sequence if d.nats_per_sequence else math.nan
        rows.append((
            Cell(d.arm),
            Cell(say(f"verdict.label.{d.verdict}"), tone=TONES[d.verdict]),
            Cell(interval(d.nats_per_sequence, d.half_width), d.nats_per_sequence),
            Cell(interval(d.nats_per_token, abs(d.half_width * per_sequence)), d.nats_per_token),
            *([Cell(minus(d.bits_per_byte or 0.0, 4), d.bits_per_byte)] if bits else []),
            Cell(p_value(d.p_value).removeprefix("p ").removeprefix("= "), d.p_value),
            number(d.seeds, str),
            *chances(d.arm),
        ))  # fmt: skip
    if found.baseline in selection:
        dashes = [Cell("–")] * (3 + bits)
        baseline = Cell(found.baseline, tag=say("word.baseline"))
        rows.append((baseline, Cell(""), *dashes, Cell(""), *chances(found.baseline)))
    return Table(say("section.comparison", baseline=found.baseline), head, tuple(rows))


def _runs(context: Context, found: ComparisonReport) -> Table:
    """Failures of each arm, and the spread of its runs over seeds."""
    say, rows = context.say, []
    for arm in found.runs:
        verdict = "–" if arm.verdict is None else say(f"arms.failures.{_key(arm.verdict)}")
        share = f"{100 * arm.low:.0f} – {100 * arm.high:.0f} %"
        rows.append((
            Cell(arm.arm), Cell(f"{arm.failed} / {arm.runs}", arm.failed), Cell(share, arm.high),
            Cell(verdict), number(arm.seed_sd, "{:.2g}".format),
            number(arm.skewness, partial(minus, digits=1)),
        ))  # fmt: skip
    head = context.head(
        "<arm", "failed", "failure_share", "<failure_verdict", "seed_sd", "skewness"
    )
    return Table(say("arms.runs_title"), head, tuple(rows), headed=True)


def _values(context: Context, found: ComparisonReport) -> Table:
    """What each arm took for the searched dimensions of training, and why."""
    say, rows = context.say, []
    for arm in found.values:
        tried = [
            say(
                "arms.tried",
                value=f"{rate:g}",
                score=say("arms.failed") if s is None else minus(s, 3),
            )
            for rate, s in arm.tried
        ]
        origin = say(f"arms.source.{_key(arm.source)}", trial=arm.trial, tried=say.join(tried))
        rows.append((Cell(arm.arm), Cell(assignments(arm.values)), Cell(origin)))
    return Table(
        say("arms.values_title"),
        context.head("<arm", "<values", "<origin"),
        tuple(rows),
        headed=True,
    )


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
        rows.append((
            Cell(c.arm), Cell(c.reaches), Cell(say(f"unit.{c.unit}")),
            Cell(share, c.factor), Cell(f"{low} – {high}", c.low or 0.0),
            number(c.probability_reached, say.probability),
        ))  # fmt: skip
    head = context.head("<arm", "<reaches", "<unit", "share", "interval", "reached_probability")
    return Table(say("compute.title"), head, tuple(rows), headed=True)


# --- scores at each mask rate --------------------------------------------------------------------


def curves(context: Context) -> ReportSection | None:
    """S(r), the score at every mask rate, by policy; the area is the LML."""
    best = [(label, t) for label, t in context.best_per_policy() if len(_curve(t)) > 1][:SERIES]
    if not best:
        return None
    trials = [trial for _, trial in best]
    labels = context.labels(trials)
    curves = list(zip(labels, map(_curve, trials), strict=True))
    caption = context.caption("curve", best=labels[0])
    charts = [curve_chart(context.say, curves, list(map(context.colour, trials)), caption)]
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
    caption: str = "",
) -> Chart:
    """Curves S(r) with their labels, the best one first: the area above it is shaded."""
    series: list[ChartSeries] = []
    for label, curve in curves:
        points = (
            estimate(
                p.mask_rate,
                p.nats_per_token,
                p.se,
                _curve_tip(say, label, p.mask_rate, p.nats_per_token, half_width(p.se)),
            )
            for p in curve
        )
        k = len(series)
        series.append(ChartSeries(label, tuple(points), colours[k], area=k == 0, bold=k == 0))
    return Chart(
        name="curve",
        title=say("figure.curve.title"),
        caption=caption,
        x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        y=Axis(say("figure.curve.y"), high=0.0),
        series=tuple(series),
        height=300,
    )


def _curve_differences(context: Context, labels: Sequence[str], trials: Sequence[Trial]) -> Chart:
    """The curves minus that of fixed 15 %, or of the last policy."""
    say = context.say
    reference = next((trial for trial in trials if is_fixed_15(trial.policy)), trials[-1])
    rates = [p.mask_rate for p in _curve(reference)]
    scores = [p.nats_per_token for p in _curve(reference)]
    series = []
    for label, trial in zip(labels, trials, strict=True):
        gains = [
            (p.mask_rate, p.nats_per_token - float(np.interp(p.mask_rate, rates, scores)))
            for p in _curve(trial)
        ]
        points = tuple(Point(r, d, _curve_tip(say, label, r, d, math.nan)) for r, d in gains)
        series.append(ChartSeries(label, points, context.colour(trial), bold=trial is trials[0]))
    name = labels[trials.index(reference)]
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
    charts = []
    for unit in UNITS:
        name = say(f"unit.{unit}")
        spent = [v for _, _, points in learners for p in points if (v := getattr(p, unit)) > 0]
        log = bool(spent) and max(spent) / min(spent) > 20
        tick = {"tokens": say.tick, "flops": power_tick, "seconds": None}[unit]
        charts.append(
            Chart(
                name=f"learning-{unit}",
                title=say("figure.learning.title", unit=name),
                caption=context.caption("learning", unit=name),
                x=Axis(say(f"axis.{unit}"), log=log, tick=tick),
                y=Axis(say("axis.lml")),
                series=tuple(
                    ChartSeries(
                        label, tuple(_learning_points(context, label, points, unit)), colour,
                        markers=True, bold=k == 0,
                    )
                    for k, (label, colour, points) in enumerate(learners)
                ),
            )
        )  # fmt: skip
    choices = tuple(say(f"unit.{unit}") for unit in UNITS)
    figures = Figures(tuple(charts), choices, say("figure.learning.choose"))
    return ReportSection("learning", say("section.learning"), (figures,))


def _learning_points(
    context: Context, label: str, points: Sequence[LearningPoint], unit: Unit
) -> Iterator[Point]:
    say = context.say
    for p in sorted(points, key=lambda p: p.progress):
        spent = {
            "tokens": f"{say.count(p.tokens)} {say('unit.tokens')}",
            "flops": f"{power_tick(p.flops)} FLOPs",
            "seconds": say.duration(p.seconds),
        }[unit]
        tip = f"{label}\n{spent}\n{context.score(p.nats_per_token, half_width(p.se))}"
        yield estimate(float(getattr(p, unit)), p.nats_per_token, p.se, tip)
