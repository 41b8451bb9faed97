"""What a study found: report.html, report.md, report.json and figures, and the live view.

`import mptune.report` is light; matplotlib and rich load when something is drawn.
"""

from __future__ import annotations

from mptune.analysis.results import Report
from mptune.report.files import write
from mptune.report.text import show

__all__ = ["Report", "show", "write"]
