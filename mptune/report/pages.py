"""report.html and report.md from one set of sections, and all files of a report.

report.html is one file that loads nothing else. It works in light and dark mode, on a phone and on
a desktop. Above its sections are the recommendation, the verdict, how certain both are, the cost of
the study, and the checklist.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mptune.analysis.results import Outcomes, Report
from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report import svg
from mptune.report.blocks import Chart
from mptune.report.document import as_json
from mptune.report.formatting import per_token, power
from mptune.report.language import Language, language
from mptune.report.layout import lay_out
from mptune.report.sections import sections
from mptune.report.sections.context import Context
from mptune.report.templates import template


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
