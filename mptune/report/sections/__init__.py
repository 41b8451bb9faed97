"""The sections of the report below its first screen.

A section is a function of a `Context` that returns text, tables and charts, or None if the study
has nothing for it. The templates decide how they look. The texts are in `lang/`.
"""

from __future__ import annotations

from collections.abc import Callable

from mptune.report.blocks import ReportSection
from mptune.report.sections.comparison import comparison, curves, learning
from mptune.report.sections.context import Context
from mptune.report.sections.method import method, replay
from mptune.report.sections.search import cost, failures, importance, ranking, trials
from mptune.report.sections.transfer import kpi, robustness, sizes

SECTIONS: tuple[Callable[[Context], ReportSection | None], ...] = (
    comparison, curves, learning, ranking, importance, cost, sizes, robustness, kpi, trials,
    failures, method, replay,
)  # fmt: skip
"""In the order of the page."""


def sections(context: Context) -> list[ReportSection]:
    """The sections of this study, in order."""
    made = (section(context) for section in SECTIONS)
    return [section for section in made if section is not None]
