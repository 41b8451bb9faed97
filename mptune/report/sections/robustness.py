"""The score on every held-out domain, and with values missing."""

from __future__ import annotations

from collections.abc import Sequence

from mptune.analysis.ranking import best_per_policy
from mptune.analysis.robustness import Condition, Robustness, RobustnessRow
from mptune.report.blocks import Block, Cell, Column, Figures, Section, Table, Text
from mptune.report.charts import Axis, Chart, Point, Series
from mptune.report.language import Language
from mptune.report.layout import SERIES
from mptune.report.sections import Context
from mptune.report.words import per_token

ORDER = 80


def section(context: Context) -> Section | None:
    found = context.report.robustness
    if found is None:
        return None
    say = context.say
    blocks: list[Block] = [Figures((_chart(context, found),)), _table(context, found)]
    if found.chosen_by_worst:
        blocks.append(Text(say("robustness.chosen_by_worst"), soft=True))
    elif found.best_at_worst is not None:
        blocks.append(Text(say("robustness.best_at_worst", trial=found.best_at_worst), soft=True))
    return Section("robustness", say("section.robustness"), tuple(blocks))


def condition_words(condition: Condition, say: Language) -> str:
    """`home`, the domain, or how much is missing."""
    if condition.kind == "home":
        return say("robustness.home")
    if condition.kind == "missing" and condition.fraction is not None:
        pattern = condition.pattern or "random"
        return say(f"robustness.missing_{pattern}", percent=f"{100 * condition.fraction:g}")
    return condition.name


def _chart(context: Context, found: Robustness) -> Chart:
    say = context.say
    rows = _shown(context, found)
    series = tuple(
        Series(label, tuple(_points(context, found, row)), colour, "dots", bold=k == 0)
        for k, (label, colour, row) in enumerate(rows)
    )
    return Chart(
        name="robustness",
        title=say("figure.robustness.title"),
        caption=say("figure.robustness.caption"),
        x=Axis(say("axis.lml_interval")),
        y=Axis(""),
        series=series,
        rows=tuple(condition_words(c, say) for c in found.conditions),
    )


def _shown(context: Context, found: Robustness) -> list[tuple[str, int, RobustnessRow]]:
    """The best trial of each policy; the arms where only they were scored."""
    by_trial = {row.trial: row for row in found.rows if row.trial is not None}
    best = [t for t in best_per_policy(context.ranked) if t.number in by_trial]
    shown = [
        (label, context.colour(t), by_trial[t.number])
        for t, label in zip(best, context.labels(best), strict=True)
    ]
    if not shown:
        arms = context.report.comparison.arms if context.report.comparison else {}
        shown = [
            (row.arm, context.colour(arms[row.arm][0]) if arms.get(row.arm) else 0, row)
            for row in found.rows
            if row.arm is not None
        ]
    return shown[:SERIES]


def _points(context: Context, found: Robustness, row: RobustnessRow) -> list[Point]:
    scores = {s.name: s for s in row.scores}
    points = []
    for y, condition in enumerate(found.conditions):
        score = scores.get(condition.name)
        if score is not None:
            name = row.arm or context.trial(row.trial).label
            tip = (
                f"{name}\n{condition_words(condition, context.say)}\n"
                f"{per_token(score.nats_per_token, score.half_width)} "
                f"{context.say('unit.nats_per_token')}"
            )
            low, high = (score.nats_per_token + s * score.half_width for s in (-1, 1))
            points.append(Point(score.nats_per_token, y, tip, low, high))
    return points


def _table(context: Context, found: Robustness) -> Table:
    say = context.say
    domains = any(row.worst_domain for row in found.rows)
    head = [
        Column(say("column.policy"), numeric=False),
        *(Column(condition_words(c, say)) for c in found.conditions),
        *([Column(say("column.worst"), numeric=False)] if domains else []),
    ]
    rows = tuple(_row(context, row, found.conditions, domains) for row in found.rows)
    wanted = context.found.recommended.number if context.found.recommended else None
    first = next((k for k, r in enumerate(found.rows) if r.trial == wanted), None)
    return Table(say("section.robustness"), tuple(head), rows, first)


def _row(
    context: Context, row: RobustnessRow, conditions: Sequence[Condition], domains: bool
) -> tuple[Cell, ...]:
    scores = {s.name: s for s in row.scores}
    cells = [
        Cell(per_token(s.nats_per_token, s.half_width), s.nats_per_token) if s else Cell("–")
        for s in (scores.get(c.name) for c in conditions)
    ]
    worst = [Cell(row.worst_domain or "–")] if domains else []
    if row.arm is not None:
        return (Cell(row.arm, below="", tag=context.say("word.arm")), *cells, *worst)
    trial = context.trial(row.trial)
    return (Cell(trial.policy_label, below=trial.size_label, tag=""), *cells, *worst)
