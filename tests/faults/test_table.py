"""The table of docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page[page.index("| fault |") :].split("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) >= 30
    named = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in rows]
    assert all(len(found) == 1 for found in named)
    missing = [(f, n) for ((f, n),) in named if f"def {n}(" not in (ROOT / f).read_text()]
    assert missing == []
