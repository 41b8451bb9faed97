"""The comparison on paired seeds: every difference with its interval, in every unit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mptune.analysis import Difference
from mptune.analysis.comparison import ComparisonReport
from mptune.report.blocks import Block, Cell, Column, Figures, Section, Table
from mptune.report.charts import Axis, Chart, Point, Series
from mptune.report.sections import Context
from mptune.report.verdicts import factor, p_value
from mptune.report.words import interval, minus

ORDER = 10

TONES = {"better": "good", "worse": "bad", "undecided": "open", "equivalent": ""}


def section(context: Context) -> Section | None:
    comparison = context.report.comparison
    if comparison is None or not comparison.differences:
        return None
    blocks: list[Block] = [Figures((_chart(context, comparison),)), _table(context, comparison)]
    if comparison.compute:
        blocks.append(_compute(context, comparison))
    title = context.say("section.comparison", baseline=comparison.baseline)
    return Section("comparison", title, tuple(blocks))


def _chart(context: Context, comparison: ComparisonReport) -> Chart:
    say = context.say
    colours = {name: context.colour(arm[0]) for name, arm in comparison.arms.items() if arm}
    series = [
        Series("", tuple(_points(context, comparison, d, row)), colours[d.arm], "dots")
        for row, d in enumerate(comparison.differences)
    ]
    return Chart(
        name="comparison",
        title=say("figure.comparison.title", baseline=comparison.baseline),
        caption=say(
            "figure.comparison.caption",
            baseline=comparison.baseline,
            level=f"{100 * comparison.level:g}",
        ),
        x=Axis(say("figure.comparison.x", baseline=comparison.baseline)),
        y=Axis(""),
        series=tuple(series),
        rows=tuple(d.arm for d in comparison.differences),
        guides=(("x", 0.0),),
    )


def _points(
    context: Context, comparison: ComparisonReport, d: Difference, row: int
) -> Iterator[Point]:
    say = context.say
    for seed, value in _seed_differences(comparison, d):
        tip = f"{say('word.seed')} {seed}\n{minus(value, 2)} {say('unit.nats_per_sequence')}"
        yield Point(value, row, tip, faint=True)
    tip = (
        f"{d.arm} − {d.baseline}\n{interval(d.nats_per_sequence, d.half_width)} "
        f"{say('unit.nats_per_sequence')}\n{p_value(d.p_value)}"
    )
    yield Point(d.nats_per_sequence, row, tip, d.low, d.high)


def _seed_differences(comparison: ComparisonReport, d: Difference) -> list[tuple[int, float]]:
    scores = {
        name: {
            t.seed: t.result.lml.nats_per_sequence for t in arm if t.result and t.seed is not None
        }
        for name, arm in comparison.arms.items()
    }
    arm, baseline = scores.get(d.arm, {}), scores.get(d.baseline, {})
    return [(seed, arm[seed] - baseline[seed]) for seed in sorted(arm.keys() & baseline.keys())]


def _table(context: Context, comparison: ComparisonReport) -> Table:
    say = context.say
    bits = any(d.bits_per_byte is not None for d in comparison.differences)
    selection = {s.arm: s for s in comparison.selection}
    head = [
        Column(say("column.arm"), numeric=False),
        Column(say("column.verdict"), numeric=False),
        Column(say.capital(say("unit.nats_per_sequence"))),
        Column(say.capital(say("unit.nats_per_token"))),
        *([Column(say.capital(say("unit.bits_per_byte")))] if bits else []),
        Column("p"),
        Column(say("column.seeds")),
        Column(say("column.best_probability")),
        Column(say("column.regret")),
    ]

    def row(d: Difference) -> tuple[Cell, ...]:
        chosen = selection.get(d.arm)
        half = (
            abs(d.half_width * d.nats_per_token / d.nats_per_sequence)
            if (d.nats_per_sequence)
            else math.nan
        )
        return (
            Cell(d.arm),
            Cell(say(f"verdict.label.{d.verdict}"), tone=TONES[d.verdict]),
            Cell(interval(d.nats_per_sequence, d.half_width), d.nats_per_sequence),
            Cell(interval(d.nats_per_token, half), d.nats_per_token),
            *([Cell(minus(d.bits_per_byte or 0.0, 4), d.bits_per_byte)] if bits else []),
            Cell(p_value(d.p_value).removeprefix("p ").removeprefix("= "), d.p_value),
            Cell(str(d.seeds), d.seeds),
            Cell(say.probability(chosen.probability), chosen.probability) if chosen else Cell("–"),
            Cell(f"{chosen.expected_regret:.2g}", chosen.expected_regret) if chosen else Cell("–"),
        )

    rows = [row(d) for d in comparison.differences]
    base = selection.get(comparison.baseline)
    if base is not None:
        blank = [Cell("–")] * (3 + bits)
        rows.append((
            Cell(comparison.baseline, tag=say("word.baseline")), Cell(""), *blank,
            Cell(""), Cell(say.probability(base.probability), base.probability),
            Cell(f"{base.expected_regret:.2g}", base.expected_regret),
        ))  # fmt: skip
    return Table(say("section.comparison", baseline=comparison.baseline), tuple(head), tuple(rows))


def _compute(context: Context, comparison: ComparisonReport) -> Table:
    """How much of one arm's compute another needs for the same score."""
    say = context.say
    head = (
        Column(say("column.arm"), numeric=False),
        Column(say("column.reaches"), numeric=False),
        Column(say("column.unit"), numeric=False),
        Column(say("column.share")),
        Column(say("column.interval")),
        Column(say("column.reached_probability")),
    )

    rows = []
    for c in comparison.compute:
        at_most = "≤ " if c.reading == "before the first rung" else ""
        share = say("compute.never") if c.factor is None else f"{at_most}{factor(c.factor)} ×"
        low = "0" if c.low is None else factor(c.low)
        high = "∞" if c.high is None else factor(c.high)
        rows.append((
            Cell(c.arm), Cell(c.reaches), Cell(say(f"unit.{c.unit}")),
            Cell(share, c.factor), Cell(f"{low} – {high}", c.low or 0.0),
            Cell(say.probability(c.probability_reached), c.probability_reached),
        ))  # fmt: skip
    return Table(say("compute.title"), head, tuple(rows), headed=True)
