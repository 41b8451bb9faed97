"""Writes the files of a report; each appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from mptune.analysis.results import Report
from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report import svg
from mptune.report.charts import Chart
from mptune.report.document import as_json
from mptune.report.html import page
from mptune.report.language import Language, language
from mptune.report.layout import lay_out
from mptune.report.markdown import markdown
from mptune.report.sections import Context, sections


def write(report: Report, paths: RunDirectory, say: Language | None = None) -> list[Path]:
    """Write report.json, report.md, figures as PNG and SVG, and report.html; returns their paths.

    Pictures have English words where no font of this machine has the language's characters.
    """
    from mptune.report.png import can_write, png

    say = say or language()
    figures = paths.report / "figures"
    written = [paths.report_html, paths.report_md, paths.report_json]
    for chart in _charts(report, say if can_write(say.code) else language()):
        with write_aside(figures / f"{chart.name}.png") as aside:
            aside.write_bytes(png(lay_out(chart)))
        written.append(figures / f"{chart.name}.png")
    for chart in _charts(report, say):
        write_text(figures / f"{chart.name}.svg", svg.document(lay_out(chart), chart.title))
        written.append(figures / f"{chart.name}.svg")
    write_text(paths.report_json, as_json(report))
    write_text(paths.report_md, markdown(report, say))
    write_text(paths.report_html, page(report, say))
    return written


def _charts(report: Report, say: Language) -> list[Chart]:
    return [c for section in sections(Context(report, say)) for c in section.charts]
