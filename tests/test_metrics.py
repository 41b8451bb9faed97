"""The counting rules of `make metrics`."""

from __future__ import annotations

from pathlib import Path

from tools import metrics

PLAN = '''\
"""Two lines of
docstring."""

from mptune.errors import InputError  # a comment
from mptune import report, __version__
from mptune.study.plan import other
import mptune.report.html


class Row:
    """A row."""

    def _used(self) -> float:
        return 1.96

    def show(self) -> str:
        text = """not a
docstring"""
        return text + str(self._used()) + str(_twice()) + str(_twice())

    @property
    def _decorated(self) -> float:
        return 1.5


def _twice() -> int:
    return 2


def _passed() -> None: ...


USED = [_passed]
'''


def package(root: Path) -> Path:
    files = {
        "__init__.py": "",
        "errors.py": "class InputError(Exception): ...\n",
        "study/__init__.py": "",
        "study/plan.py": PLAN,
        "report/__init__.py": "class Row: ...\n",
        "report/html.py": "def long():\n"
        + "    pass\n" * 60
        + "def short():\n"
        + "    pass\n" * 59,
        "report/page.css": "",
    }
    for name, text in files.items():
        path = root / "mptune" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_counting_rules(tmp_path: Path) -> None:
    assert metrics.measure(package(tmp_path)) == {
        "Python files": 6,
        "  at the top level": 2,
        "other files": 1,
        "code lines": 141,
        "  (top level)": 1,
        "  report": 122,
        "  study": 18,
        "classes": 3,
        "  names used more than once": 1,
        "functions and methods": 7,
        "  over 60 lines": 1,
        "  private and called once": 1,
        "methods of class no. 1": "3 Row",
        "methods of class no. 2": "0 InputError",
        "methods of class no. 3": "0 Row",
        "imports between rooms": 3,
        "  arrows between rooms": 2,
        "literals 1.96": 1,
    }


def test_two_trees_side_by_side() -> None:
    shown = metrics.table({"files": 12, "new": 1}, {"files": 9, "old": 2, "new": 1}, "v1")
    assert shown.splitlines() == [
        "       here  v1  change",
        "files    12   9      +3",
        "old       0   2      -2",
        "new       1   1",
    ]
