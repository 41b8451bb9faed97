"""How large the package is, and how its parts hang together: `python tools/metrics.py [REVISION]`.

With a git revision, its figures are shown beside those of this tree. Standard library only.

    code lines       no blank lines, comments and docstrings
    function lines   from `def` to the last line, docstring included
    a room           a folder of the package, or a file at its top level
    called once      a private function or method that its file mentions once, as a call
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

PACKAGE = "mptune"
LONG = 60
LARGEST = 5
TOP = "(top level)"

Function = ast.FunctionDef | ast.AsyncFunctionDef
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


@dataclass(frozen=True)
class Source:
    """One Python file of the package; `path` is relative to the package."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def room(self) -> str:
        return self.path.parts[0].removesuffix(".py")

    @property
    def folder(self) -> str:
        return self.path.parts[0] if len(self.path.parts) > 1 else TOP

    def code_lines(self) -> int:
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in (*LAYOUT, tokenize.ENDMARKER):
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in self.nodes:
            if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
                docstring = node.body[0]
                lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
        return len(lines)

    def classes(self) -> list[ast.ClassDef]:
        return [n for n in self.nodes if isinstance(n, ast.ClassDef)]

    def functions(self) -> list[Function]:
        return [n for n in self.nodes if isinstance(n, Function)]

    def private_called_once(self) -> list[str]:
        """Decorated ones are left out: their decorator may be what calls them."""
        mentions = Counter(_name(n) for n in self.nodes if isinstance(n, ast.Name | ast.Attribute))
        calls = {_name(n.func) for n in self.nodes if isinstance(n, ast.Call)}
        return [
            f.name
            for f in self.functions()
            if f.name.startswith("_") and not f.name.endswith("__") and not f.decorator_list
            if mentions[f.name] == 1 and f.name in calls
        ]  # fmt: skip

    def imported_rooms(self, rooms: set[str]) -> Iterator[str]:
        """The room of every imported module of the package that is in another room."""
        for node in self.nodes:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                package, _, rest = name.partition(".")
                room = rest.partition(".")[0]
                if package == PACKAGE and room in rooms - {self.room}:
                    yield room


def _name(node: ast.AST) -> str:
    """`f` of `f` and of `a.f`; empty for anything else."""
    return str(getattr(node, "id", getattr(node, "attr", "")))


def measure(root: Path) -> dict[str, int | str]:
    """The figures of the package in `root`, by name, in the order in which they are shown."""
    package = root / PACKAGE
    sources = [
        Source(p.relative_to(package), p.read_text("utf-8")) for p in sorted(package.rglob("*.py"))
    ]
    lines: Counter[str] = Counter()
    for source in sources:
        lines[source.folder] += source.code_lines()
    classes = [c for s in sources for c in s.classes()]
    names = Counter(c.name for c in classes)
    functions = [f for s in sources for f in s.functions()]
    rooms = {s.room for s in sources}
    arrows = [(s.room, room) for s in sources for room in s.imported_rooms(rooms)]
    literals = (n for s in sources for n in s.nodes if isinstance(n, ast.Constant))
    methods = [(sum(isinstance(n, Function) for n in c.body), c.name) for c in classes]
    largest = sorted(methods, key=lambda row: (-row[0], row[1]))[:LARGEST]
    return {
        "Python files": len(sources),
        "  at the top level": sum(s.folder == TOP for s in sources),
        "other files": sum(
            p.is_file() and p.suffix not in (".py", ".pyc") for p in package.rglob("*")
        ),
        "code lines": lines.total(),
        **{f"  {folder}": lines[folder] for folder in sorted(lines)},
        "classes": len(classes),
        "  names used more than once": sum(count > 1 for count in names.values()),
        "functions and methods": len(functions),
        f"  over {LONG} lines": sum((f.end_lineno or 0) - f.lineno >= LONG for f in functions),
        "  private and called once": sum(len(s.private_called_once()) for s in sources),
        **{
            f"methods of class no. {place}": f"{count} {name}"
            for place, (count, name) in enumerate(largest, 1)
        },
        "imports between rooms": len(arrows),
        "  arrows between rooms": len(set(arrows)),
        "literals 1.96": sum(n.value == 1.96 for n in literals),
    }


def measure_revision(revision: str) -> dict[str, int | str]:
    """The figures of a git revision of this repository."""
    archive = subprocess.run(
        ["git", "archive", revision, PACKAGE], stdout=subprocess.PIPE, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        return measure(Path(folder))


def table(now: dict[str, int | str], before: dict[str, int | str] | None, title: str) -> str:
    """The figures in columns; with those of a revision, and the change where it is a number."""
    rows = [("", "here", *((title, "change") if before is not None else ()))]
    names = list(now)
    for previous, name in pairwise(["", *(before or {})]):
        if name not in names:
            names.insert(names.index(previous) + 1 if previous else 0, name)
    for name in names:
        here = now.get(name, 0)
        row = [name, str(here)]
        if before is not None:
            there = before.get(name, 0)
            row.append(str(there))
            changed = isinstance(here, int) and isinstance(there, int) and here != there
            row.append(f"{int(here) - int(there):+d}" if changed else "")
        rows.append(tuple(row))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    revision = sys.argv[1] if len(sys.argv) > 1 else ""
    print(table(measure(Path()), measure_revision(revision) if revision else None, revision))
