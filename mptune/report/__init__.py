"""What a study found: report.html, report.md, report.json and figures, and the live view.

`import mptune.report` is light; Jinja2, rich and the PNG renderer load on first use.
"""

from __future__ import annotations

from mptune.analysis.results import Report
from mptune.report.pages import write
from mptune.report.text import show

__all__ = ["Report", "show", "write"]
