"""Finished trials by LML, with intervals and how probably each is the best."""

from __future__ import annotations

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import accuracy_at, loss_at
from mptune.analysis.selection import Candidate, SearchSelection
from mptune.report.blocks import Block, Cell, Column, Figures, Section, Table, Text
from mptune.report.charts import Axis, Chart, Point, Series
from mptune.report.sections import Context
from mptune.report.words import interval, minus, per_token, power
from mptune.trial import Trial

ORDER = 40

SHOWN = 16


def section(context: Context) -> Section | None:
    say, title = context.say, context.say("section.ranking")
    if not context.ranked:
        return Section("ranking", title, (Text(say("ranking.empty")),))
    blocks: list[Block] = [Figures((_chart(context),)), _table(context)]
    selection = context.report.selection
    if selection is not None:
        blocks += [Text(_noise_words(context, selection), soft=True)]
    return Section("ranking", title, tuple(blocks))


def _candidates(context: Context) -> dict[int, Candidate]:
    selection = context.report.selection
    return {c.trial: c for c in selection.candidates} if selection else {}


def _noise_words(context: Context, selection: SearchSelection) -> str:
    if selection.seed_sd is None:
        return context.say("ranking.seed_unknown")
    return context.say("ranking.seed_sd", sd=f"{selection.seed_sd:.2g}", n=selection.seed_runs)


def _chart(context: Context) -> Chart:
    say, rows = context.say, context.ranked[:SHOWN]
    hidden = len(context.ranked) - len(rows)
    more = say("figure.ranking.more", n=hidden) if hidden else ""
    series = [
        Series("", (_point(context, trial, y),), context.colour(trial), "dots")
        for y, trial in enumerate(rows)
    ]
    return Chart(
        name="ranking",
        title=say("figure.ranking.title"),
        caption=say("figure.ranking.caption", more=more),
        x=Axis(say("axis.lml_interval")),
        y=Axis(""),
        series=tuple(series),
        rows=tuple(context.labels(rows)),
    )


def _point(context: Context, trial: Trial, y: int) -> Point:
    say, value = context.say, trial.nats_per_token
    half = lml_half_width(trial.require_result().lml)
    tip = f"{y + 1}. {trial.label}\n{per_token(value, half)} {say('unit.nats_per_token')}"
    half = half if half == half else 0.0
    candidate = _candidates(context).get(trial.number)
    if candidate is not None:
        tip += f"\n{say('column.best_probability')}: {say.probability(candidate.probability)}"
    return Point(value, y, tip, value - half, value + half)


def _table(context: Context) -> Table:
    say, candidates = context.say, _candidates(context)
    bits = any(t.require_result().lml.bits_per_byte is not None for t in context.ranked)
    head = [
        Column("#"),
        Column(say("column.policy"), numeric=False),
        Column(say("column.lml")),
        *([Column(say("column.best_probability")), Column(say("column.expected"))]
          if candidates else []),
        *([Column(say("column.confirmed"))] if _any_confirmed(context) else []),
        *([Column(say.capital(say("unit.bits_per_byte")))] if bits else []),
        Column(say("column.loss")),
        Column(say("column.accuracy")),
        Column(say("column.parameters")),
        Column("FLOPs"),
        Column(say("column.time")),
        Column(say("column.trial")),
    ]  # fmt: skip
    rows = tuple(
        _row(context, place, trial, candidates, bits)
        for place, trial in enumerate(context.ranked, start=1)
    )
    chosen = context.found.recommended
    first = context.ranked.index(chosen) if chosen else None
    return Table(say("section.ranking"), tuple(head), rows, first)


def _any_confirmed(context: Context) -> bool:
    return any(c.confirmation for c in _candidates(context).values())


def _row(
    context: Context, place: int, trial: Trial, candidates: dict[int, Candidate], bits: bool
) -> tuple[Cell, ...]:
    say, result = context.say, trial.require_result()
    cost, lml = result.cost, result.lml
    loss, accuracy = loss_at(result, 0.15), accuracy_at(result, 0.15)
    parameters = trial.parameters or cost.parameters
    cells = [
        Cell(str(place), place),
        Cell(trial.policy_label, below=trial.size_label, tag=trial.arm or ""),
        Cell(per_token(lml.nats_per_token, lml_half_width(lml)), lml.nats_per_token),
    ]
    if candidates:
        cells += _candidate_cells(context, candidates.get(trial.number))
    if bits:
        b = lml.bits_per_byte
        cells.append(Cell("–" if b is None else f"{b:.3f}", b))
    return (
        *cells,
        Cell("–" if loss is None else f"{loss:.3f}", loss),
        Cell("–" if accuracy is None else f"{100 * accuracy:.1f} %", accuracy),
        Cell(say.count(parameters), parameters),
        Cell(power(cost.flops), cost.flops),
        Cell(say.duration(cost.total_s), cost.total_s),
        Cell(str(trial.number), trial.number),
    )


def _candidate_cells(context: Context, candidate: Candidate | None) -> list[Cell]:
    shown = _any_confirmed(context)
    if candidate is None:
        return [Cell("–")] * (2 + shown)
    cells = [
        Cell(context.say.probability(candidate.probability), candidate.probability),
        Cell(per_token(candidate.shrunken, candidate.half_width), candidate.shrunken),
    ]
    found = candidate.confirmation
    if shown and found is None:
        cells.append(Cell("–"))
    elif shown and found is not None:
        words = interval(found.nats_per_token, found.half_width, 3)
        optimism = context.say("ranking.optimism", value=minus(found.optimism, 3))
        cells.append(Cell(words, found.nats_per_token, title=optimism))
    return cells
