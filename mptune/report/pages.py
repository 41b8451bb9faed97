"""report.html and report.md from one set of sections, all files of a report, and curves as a PNG.

report.html is one file that loads nothing else. It works in light and dark mode, on a phone and on
a desktop. Above its sections are the recommendation, the verdict, how certain both are, the cost of
the study, and the checklist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mptune.analysis.intervals import NORMAL_95
from mptune.analysis.results import Outcomes, Report
from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report import svg
from mptune.report.blocks import Axis, Chart, ChartSeries, Point, ReportSection, percent_tick
from mptune.report.document import as_json
from mptune.report.findings import Findings, findings
from mptune.report.formatting import per_token, power
from mptune.report.language import DEFAULT, Language, language
from mptune.report.layout import lay_out
from mptune.report.rendering import template
from mptune.report.sections import sections
from mptune.report.sections.context import Context

if TYPE_CHECKING:
    from mptune.lml.estimator import MPTCurve


def write(
    report: Report,
    paths: RunDirectory,
    say: Language | None = None,
    found: Findings | None = None,
) -> list[Path]:
    """Write report.json, report.md, report.html and the figures as PNG and SVG; returns the paths.

    Each file is written aside and moved into place. PNGs have English text if no font of this
    machine has the characters of the language.

    Args:
        found: the findings of the report in the language `say`, if they are known.
    """
    say = say or language()
    context = english = Context(report, say, found or findings(report, say))
    if say.code != DEFAULT:
        english = Context(report, language(), findings(report))
    values = _values(context)
    shown = in_png = values["sections"]
    if english is not context and not svg.has_font_for(say("name")[:2]):
        in_png = sections(english)
    figures = paths.report / "figures"
    written = [paths.report_html, paths.report_md, paths.report_json]
    for chart in _charts(in_png):
        with write_aside(figures / f"{chart.name}.png") as aside:
            aside.write_bytes(svg.png(lay_out(chart)))
        written.append(figures / f"{chart.name}.png")
    for chart in _charts(shown):
        write_text(figures / f"{chart.name}.svg", svg.document(lay_out(chart), chart.title))
        written.append(figures / f"{chart.name}.svg")
    write_text(paths.report_json, as_json(report, english.found))
    write_text(paths.report_md, _markdown(values))
    write_text(paths.report_html, _page(values))
    return written


def page(report: Report, say: Language | None = None) -> str:
    """report.html; every string in it is escaped, and opening it makes no request."""
    say = say or language()
    return _page(_values(Context(report, say, findings(report, say))))


def _page(values: dict[str, Any]) -> str:
    assets = files("mptune.report").joinpath("assets")
    style, script = (assets.joinpath(n).read_text("utf-8") for n in ("report.css", "report.js"))
    return template("report.html").render(
        **values,
        style=Markup(svg.palette_css() + style),
        script=Markup(script),
        lay_out=lay_out,
    )


def markdown(report: Report, say: Language | None = None) -> str:
    """report.md: the same text and tables as the page, with the figures as files beside it."""
    say = say or language()
    return _markdown(_values(Context(report, say, findings(report, say))))


def _markdown(values: dict[str, Any]) -> str:
    return template("report.md").render(**values) + "\n"


def _values(context: Context) -> dict[str, Any]:
    """Values that the templates use."""
    return {
        "report": context.report,
        "found": context.found,
        "say": context.say,
        "sections": sections(context),
        "checks": sorted(context.found.checks, key=lambda check: check.ok),
        "facts": list(_facts(context)),
        "cost": list(_cost(context)),
    }


def _charts(shown: Sequence[ReportSection]) -> list[Chart]:
    return [chart for section in shown for chart in section.charts]


def _facts(context: Context) -> Iterator[tuple[str, str, str]]:
    """Term, value and unit of the numbers below the recommendation."""
    say, best = context.say, context.found.choice
    if best is not None:
        seeds = len(context.report.choice().runs)
        unit = say("fact.lml_mean", n=seeds) if seeds else say("fact.lml_unit")
        term = say("fact.lml" if context.found.learned else "fact.best_lml")
        yield term, per_token(*context.found.score), unit
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
