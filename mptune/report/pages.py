"""report.html and report.md from one set of sections, all files of a report, and curves as a PNG.

report.html is one file that loads nothing else. It works in light and dark mode, on a phone and on
a desktop. Above its sections are the recommendation, the verdict, how certain both are, the cost of
the study, and the checklist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from mptune.analysis.intervals import NORMAL_95
from mptune.analysis.results import Outcomes, Report
from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report import svg
from mptune.report.blocks import Axis, Chart, ChartSeries, Point, percent_tick
from mptune.report.document import as_json
from mptune.report.formatting import per_token, power
from mptune.report.language import Language, language
from mptune.report.layout import lay_out
from mptune.report.sections import sections
from mptune.report.sections.context import Context

if TYPE_CHECKING:
    from mptune.lml.estimator import MPTCurve


@cache
def template(name: str) -> Template:
    """A template by its file name; what it inserts is escaped for HTML and SVG or for Markdown."""
    escaping: dict[str, Any] = (
        {"finalize": escape_markdown} if name.endswith(".md") else {"autoescape": True}
    )
    environment = Environment(
        loader=PackageLoader("mptune.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **escaping,
    )
    environment.filters.update(prose=prose, code=code)
    return environment.get_template(name)


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is: no HTML, no emphasis, no end of a table cell."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", str(value)).replace("\n", " ")


def prose(text: str) -> str:
    """Text whose lines do not break between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def code(text: str) -> Markup:
    """HTML of a text in which backticks enclose code."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def write(report: Report, paths: RunDirectory, say: Language | None = None) -> list[Path]:
    """Write report.json, report.md, report.html and the figures as PNG and SVG; returns the paths.

    Each file is written aside and moved into place. PNGs have English text if no font of this
    machine has the characters of the language.
    """
    say = say or language()
    in_png = say if svg.has_font_for(say("name")[:2]) else language()
    figures = paths.report / "figures"
    written = [paths.report_html, paths.report_md, paths.report_json]
    for chart in _charts(report, in_png):
        with write_aside(figures / f"{chart.name}.png") as aside:
            aside.write_bytes(svg.png(lay_out(chart)))
        written.append(figures / f"{chart.name}.png")
    for chart in _charts(report, say):
        write_text(figures / f"{chart.name}.svg", svg.document(lay_out(chart), chart.title))
        written.append(figures / f"{chart.name}.svg")
    write_text(paths.report_json, as_json(report))
    write_text(paths.report_md, markdown(report, say))
    write_text(paths.report_html, page(report, say))
    return written


def page(report: Report, say: Language | None = None) -> str:
    """report.html; every string in it is escaped, and opening it makes no request."""
    context = Context(report, say or language())
    say, assets = context.say, files("mptune.report").joinpath("assets")
    style, script = (assets.joinpath(n).read_text("utf-8") for n in ("report.css", "report.js"))
    return template("report.html").render(
        **_values(context),
        style=Markup(svg.palette_css() + style),
        script=Markup(script),
        svg=svg.inline,
        lay_out=lay_out,
        facts=list(_facts(context)),
        cost=list(_cost(context)),
    )


def markdown(report: Report, say: Language | None = None) -> str:
    """report.md: the same text and tables as the page, with the figures as files beside it."""
    return template("report.md").render(**_values(Context(report, say or language()))) + "\n"


def _values(context: Context) -> dict[str, Any]:
    """Values that both templates use."""
    return {
        "report": context.report,
        "found": context.found,
        "say": context.say,
        "sections": sections(context),
        "checks": sorted(context.found.checks, key=lambda check: check.ok),
    }


def _charts(report: Report, say: Language) -> list[Chart]:
    return [c for section in sections(Context(report, say)) for c in section.charts]


def _facts(context: Context) -> Iterator[tuple[str, str, str]]:
    """Term, value and unit of the numbers below the recommendation."""
    say, best = context.say, context.found.recommended
    if best is not None:
        yield say("fact.lml"), per_token(*context.found.score), say("fact.lml_unit")
        result = best.require_result()
        if result.lml.bits_per_byte is not None:
            bits = f"{result.lml.bits_per_byte * context.found.score[0] / best.nats_per_token:.3f}"
            yield say("fact.code_length"), bits, say("unit.bits_per_byte")
        yield (
            say("fact.size"),
            say.count(best.parameters or result.cost.parameters),
            say("unit.parameters"),
        )
    ended = Outcomes.of(context.report)
    share = say("fact.trials_of", finished=ended.finished, all=ended.all)
    yield say("fact.trials"), share, say("fact.finished")


def _cost(context: Context) -> Iterator[tuple[str, str]]:
    """The cost of the study: term and value."""
    say, spend = context.say, context.report.spend
    yield say("cost.runs"), str(spend.trials)
    yield say("cost.tokens"), say.count(spend.tokens)
    yield say("cost.flops"), power(spend.flops)
    yield say("cost.worker"), say.duration(spend.worker_s)
    if spend.wall_s is not None:
        yield say("cost.clock"), say.duration(spend.wall_s)


def curves_png(curves: Mapping[str, MPTCurve]) -> bytes:
    """The masked-prediction curves of models, by label, as a PNG in light colours."""
    say = language()

    def points(curve: MPTCurve) -> tuple[Point, ...]:
        half = NORMAL_95 * curve.se
        low, high = curve.mean_log_prob - half, curve.mean_log_prob + half
        rows = zip(curve.mask_rate, curve.mean_log_prob, low, high, strict=True)
        return tuple(Point(float(r), float(s), y_low=a, y_high=b) for r, s, a, b in rows)

    series = tuple(
        ChartSeries(label, points(curve), number)
        for number, (label, curve) in enumerate(curves.items())
    )
    chart = Chart(
        name="curves",
        title=say("figure.curve.title"),
        caption="",
        x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        y=Axis(say("figure.curve.y"), high=0.0),
        series=series,
        guides=(("x", 0.15),),
        height=380,
    )
    return svg.png(lay_out(chart))
