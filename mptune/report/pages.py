"""report.html and report.md from one set of sections, all files of a report, and curves as a PNG.

report.html is one file that loads nothing else. It works in light and dark mode, on a phone and on
a desktop. Above its sections are the recommendation, the verdict, how certain both are, the cost of
the study, and the checklist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mptune.analysis.results import Outcomes, Report
from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report import svg
from mptune.report.blocks import Chart, ReportSection
from mptune.report.document import as_json
from mptune.report.language import DEFAULT, Language, language
from mptune.report.layout import lay_out
from mptune.report.rendering import template
from mptune.report.sections import sections
from mptune.report.sections.comparison import curve_chart
from mptune.report.sections.context import Context
from mptune.trial import CurvePoint

if TYPE_CHECKING:
    from mptune.lml.estimator import MPTCurve


def write(report: Report, paths: RunDirectory, say: Language | None = None) -> list[Path]:
    """Write report.json, report.md, report.html and the figures as PNG and SVG; returns the paths.

    Each file is written aside and moved into place. PNGs have English text if no font of this
    machine has the characters of the language.
    """
    say = say or language()
    context, english = Context(report, say), Context(report, language())
    values = _values(context)
    shown = in_png = values["sections"]
    if say.code != DEFAULT and not svg.has_font_for(say("name")[:2]):
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
    write_text(paths.report_json, as_json(report))
    write_text(paths.report_md, _markdown(values))
    write_text(paths.report_html, _page(values))
    return written


def page(report: Report, say: Language | None = None) -> str:
    """report.html; every string in it is escaped, and opening it makes no request."""
    return _page(_values(Context(report, say or language())))


def _page(values: dict[str, Any]) -> str:
    assets = files("mptune.report").joinpath("assets")
    style, script = (assets.joinpath(n).read_text("utf-8") for n in ("report.css", "report.js"))
    return template("report.html").render(
        **values,
        style=Markup(style),
        script=Markup(script),
        lay_out=lay_out,
        ended=Outcomes.of(values["report"]),
    )


def markdown(report: Report, say: Language | None = None) -> str:
    """report.md: the same text and tables as the page, with the figures as files beside it."""
    return _markdown(_values(Context(report, say or language())))


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
    }


def _charts(shown: Sequence[ReportSection]) -> list[Chart]:
    return [chart for section in shown for chart in section.charts]


def curves_png(curves: Mapping[str, MPTCurve]) -> bytes:
    """The masked-prediction curves of models, by label, as a PNG in light colours."""
    points = {
        label: [
            CurvePoint(mask_rate=rate, nats_per_token=nats, se=se)
            for rate, nats, se in zip(curve.mask_rate, curve.mean_log_prob, curve.se, strict=True)
        ]
        for label, curve in curves.items()
    }
    chart = curve_chart(language(), list(points.items()), range(len(points)))
    return svg.png(lay_out(replace(chart, guides=(("x", 0.15),), height=380)))
