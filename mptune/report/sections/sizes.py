"""The best mask rate and the LML gap as functions of size and budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mptune.analysis.sizes import LawValue, SizeLaw
from mptune.report.blocks import Block, Cell, Column, Figures, Section, Table, Text
from mptune.report.charts import Axis, Chart, Point, Series, percent_tick
from mptune.report.language import Language
from mptune.report.sections import Context
from mptune.report.words import minus, rate

ORDER = 70

KEYS = {"best rate": "rate", "gap": "gap"}


def section(context: Context) -> Section | None:
    found, say = context.report.by_size, context.say
    if found is None:
        return None
    blocks: list[Block] = []
    pairs = ((found.best_rate, found.best_rate_missing), (found.gap, found.gap_missing))
    for law, why_not in pairs:
        if law is not None:
            blocks += _law(law, say)
        elif why_not:
            blocks.append(Text(why_not, soft=True))
    return Section("sizes", say("section.sizes"), tuple(blocks)) if blocks else None


def _law(law: SizeLaw, say: Language) -> Iterator[Block]:
    yield Figures((_chart(law, say),))
    matters = say("sizes.matters" if law.size_matters else "sizes.constant")
    yield Text(say("sizes.law", form=law.form, n=law.runs, matters=matters), soft=True)
    yield _parameters(law, say)
    if law.extrapolation:
        yield _extrapolation(law, say)


def _words(law: SizeLaw, value: float) -> str:
    return rate(value) if law.what == "best rate" else minus(value, 3)


def _chart(law: SizeLaw, say: Language) -> Chart:
    key = KEYS[law.what]
    budgets = [curve[0].tokens for curve in law.curves if curve]
    curves = [
        Series(
            say("sizes.budget", tokens=say.tick(tokens)),
            tuple(_value_point(law, v, say) for v in curve),
            number,
            bold=number == len(budgets) - 1,
        )
        for number, (tokens, curve) in enumerate(zip(budgets, law.curves, strict=False))
    ]
    named = [e.at for e in law.extrapolation]
    extra = (
        [Series(say("sizes.named"), tuple(_value_point(law, v, say) for v in named), 4, "dots")]
        if named
        else []
    )
    zero = (("y", 0.0),) if law.what == "gap" else ()
    return Chart(
        name=f"size-{key}",
        title=say(f"figure.size_{key}.title", of=law.of),
        caption=say(f"figure.size_{key}.caption", of=law.of),
        x=Axis(say("axis.parameters"), log=True, tick=say.tick),
        y=Axis(say(f"figure.size_{key}.y"), tick=percent_tick if key == "rate" else None),
        series=(*curves, *_measured(law, say, budgets), *extra),
        guides=zero,  # type: ignore[arg-type]
    )


def _measured(law: SizeLaw, say: Language, budgets: Sequence[float]) -> Iterator[Series]:
    """Points in the colour of their budget's curve."""
    known = {tokens: number for number, tokens in enumerate(budgets)}
    groups: dict[int, list[Point]] = {}
    for p in law.points:
        tip = (
            f"{say.count(p.parameters)} {say('unit.parameters')}, {say.count(p.tokens)} "
            f"{say('unit.tokens')}\n{_words(law, p.value)}\n{say('sizes.runs', n=p.runs)}"
        )
        point = Point(p.parameters, p.value, tip, y_low=p.low, y_high=p.high)
        groups.setdefault(known.get(p.tokens, 0), []).append(point)
    for number, points in groups.items():
        yield Series("", tuple(points), number, "dots")


def _value_point(law: SizeLaw, value: LawValue, say: Language) -> Point:
    tip = (
        f"{say.count(value.parameters)} {say('unit.parameters')}\n{_words(law, value.value)} "
        f"({_words(law, value.low)} – {_words(law, value.high)})"
    )
    return Point(value.parameters, value.value, tip, y_low=value.low, y_high=value.high)


def _parameters(law: SizeLaw, say: Language) -> Table:
    head = (Column(say("column.law"), numeric=False), Column(say("column.value")),
            Column(say("column.interval")))  # fmt: skip
    rows = tuple(
        (Cell(p.name), Cell(minus(p.value, 3), p.value),
         Cell(f"{minus(p.low, 3)} – {minus(p.high, 3)}", p.low))
        for p in law.parameters
    )  # fmt: skip
    return Table(say("sizes.parameters"), head, rows, headed=True)


def _extrapolation(law: SizeLaw, say: Language) -> Table:
    head = (
        Column(say("column.parameters")),
        Column(say.capital(say("unit.tokens"))),
        Column(say(f"column.size_{KEYS[law.what]}")),
        Column(say("column.interval")),
        Column(say("column.beyond")),
    )
    rows = tuple(
        (
            Cell(say.count(e.at.parameters), e.at.parameters),
            Cell(say.count(e.at.tokens), e.at.tokens),
            Cell(_words(law, e.at.value), e.at.value),
            Cell(f"{_words(law, e.at.low)} – {_words(law, e.at.high)}", e.at.low),
            Cell(_beyond(e.beyond, say), e.beyond, tone="open" if e.beyond > 1 else "good"),
        )
        for e in law.extrapolation
    )
    return Table(say("sizes.extrapolation"), head, rows, headed=True)


def _beyond(factor: float, say: Language) -> str:
    return say("sizes.inside") if factor <= 1 else say("sizes.beyond", factor=f"{factor:.3g}")
