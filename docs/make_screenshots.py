"""Draw docs/report*.png from a report: `python docs/make_screenshots.py RUN_DIR`.

Needs Chromium (`make browser`). Writes the report of the run directory in both languages into a
temporary folder; the run directory itself is only read.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mptune.analysis.results import Report  # noqa: E402
from mptune.report.language import language  # noqa: E402
from mptune.report.pages import page  # noqa: E402
from tests.report.chromium import Tab, chromium, file_url  # noqa: E402

DOCS = ROOT / "docs"

SHOTS = {
    "report": ("en", 1200, False, 1240, ""),
    "report-dark": ("en", 1200, True, 1240, ""),
    "report-ja": ("ja", 1200, False, 1240, ""),
    "report-phone": ("en", 390, False, 1400, ""),
    "report-phone-ja": ("ja", 390, True, 1400, ""),
    "report-figures": ("en", 1200, False, 1240, "curves"),
    "report-trials": ("en", 1200, False, 900, "trials"),
}
"""Name -> language, width, dark, height, section at the top."""


def main(run_directory: Path) -> None:
    import json

    text = (run_directory / "report" / "report.json").read_text(encoding="utf-8")
    report = Report.model_validate(json.loads(text)["input"])
    with tempfile.TemporaryDirectory() as folder, chromium() as tab:
        for code in ("en", "ja"):
            (Path(folder) / f"{code}.html").write_text(page(report, language(code)), "utf-8")
        for name, (code, width, dark, height, section) in SHOTS.items():
            tab.open(file_url(Path(folder) / f"{code}.html"), width=width, dark=dark)
            target = DOCS / f"{name}.png"
            target.write_bytes(_small(tab.screenshot(top=_top(tab, section), height=height)))
            print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


def _top(tab: Tab, section: str) -> float:
    if not section:
        return 0.0
    return float(tab.run(f"document.getElementById('{section}').offsetTop - 24"))


def _small(png: bytes) -> bytes:
    """The picture with 256 colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return out.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
