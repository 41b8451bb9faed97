"""Do the tests notice a mistake? `python tools/mutants.py [--number N] [--seed S] [--jobs J]`.

Makes one small mistake at a time in the modules that decide something, each in a copy of the tree,
and runs the module's tests: first the file of the same name, then the whole folder. Prints whether
they failed (killed) or passed (survived), with the changed line. A survivor is a missing test, code
without effect, or a change that makes no difference.

A mistake is one of: another sign or operator, an operand or a number changed, a comparison flipped
or off by one, a condition negated, min for max, zeros for ones, or a statement left out. The same
seed draws the same sample of the same tree. Standard library and pytest only.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300
"""A mistake that makes the tests run longer is noticed."""

MODULES = {
    "mptune/lml/*.py": "tests/lml",
    "mptune/analysis/*.py": "tests/analysis",
    "mptune/dispatch/admission.py": "tests/dispatch/test_admission.py",
    "mptune/search/budget.py": "tests/search",
    "mptune/search/ledger.py": "tests/search",
    "mptune/search/forecast.py": "tests/search",
    "mptune/report/verdicts.py": "tests/report/test_verdicts.py",
    "mptune/policies/base.py": "tests/policies",
    "mptune/training/schedule.py": "tests/training/test_schedule.py",
    "mptune/spec/source.py": "tests/spec",
}
"""Modules that decide something -> their tests."""

OPERATORS: dict[type[ast.AST], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("/",)),
    ast.Pow: ("**", ("*",)),
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.And: ("and", ("or",)),
    ast.Or: ("or", ("and",)),
}
NAMES = {"min": "max", "any": "all", "zeros": "ones", "argmin": "argmax", "ceil": "floor"}
NAMES |= {new: old for old, new in NAMES.items()}
LEFT_OUT = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Mutant:
    """Bytes `start` to `end` of a file are `new` instead."""

    path: str
    line: int
    start: int
    end: int
    new: str

    def of(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def difference(self, source: bytes) -> str:
        """The first changed line, before and after."""
        old, new = (text.decode().splitlines() for text in (source, self.of(source)))
        return f"    - {old[self.line - 1].strip()}\n    + {new[self.line - 1].strip()}"


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every mistake that can be made in a file."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = []
    for node in _code(ast.parse(source)):
        for first, last, new in _changes(node, source, lines):
            line = 1 + source[:first].count(b"\n")
            found.append(Mutant(path, line, first, last, new))
    return sorted(found, key=lambda m: (m.start, m.end, m.new))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What is run: no annotations, and no strings that stand alone."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _changes(node: ast.AST, source: bytes, lines: list[int]) -> Iterator[tuple[int, int, str]]:
    """(first byte, byte after the last, text instead of them)."""

    def place(part: ast.expr | ast.stmt) -> tuple[int, int]:
        assert part.end_lineno is not None
        assert part.end_col_offset is not None
        start = lines[part.lineno - 1] + part.col_offset
        return start, lines[part.end_lineno - 1] + part.end_col_offset

    def between(
        left: ast.expr, operator: ast.AST, right: ast.expr
    ) -> Iterator[tuple[int, int, str]]:
        old, others = OPERATORS.get(type(operator), ("", ()))
        first = source.find(old.encode(), place(left)[1], place(right)[0])
        for new in others:
            yield first, first + len(old), new

    match node:
        case ast.BinOp(left=left, op=operator, right=right):
            yield from between(left, operator, right)
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield from between(left, operator, right)
        case ast.BoolOp(op=operator, values=[left, right, *_]):
            yield from between(left, operator, right)
        case ast.UnaryOp(op=ast.USub() | ast.Not() as operator):
            start = place(node)[0]
            yield start, start + len("not" if isinstance(operator, ast.Not) else "-"), ""
        case ast.Constant(value=bool(value)):
            yield *place(node), str(not value)
        case ast.Constant(value=int(value)):
            yield *place(node), str(value + 1)
        case ast.Constant(value=float(value)):
            yield *place(node), repr(1.5 * value or 1.0)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in NAMES:
            end = place(node)[1]
            yield end - len(name), end, NAMES[name]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            start, end = place(test)
            yield start, end, f"not ({source[start:end].decode()})"
        case ast.Expr(value=ast.Call()):
            yield *place(node), "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield *place(node), "pass"
        case ast.stmt() if isinstance(node, LEFT_OUT):
            yield *place(node), "pass"


def all_mutants(root: Path) -> dict[Mutant, str]:
    """Every mutant -> its tests."""
    found = {}
    for pattern, tests in MODULES.items():
        paths = sorted(root.glob(pattern))
        if not paths:
            sys.exit(f"tools/mutants.py: no file {pattern}; change MODULES")
        for path in paths:
            for mutant in mutants(str(path.relative_to(root)), path.read_bytes()):
                found[mutant] = tests
    return found


def passes(tree: Path, tests: str) -> bool:
    """Whether tests pass in a tree; those that take too long do not."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--no-header",
               "-m", "not slow and not nightly", tests]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(TIMEOUT_S) in (0, 5)  # 5: every test was deselected
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return False


def survives(tree: Path, mutant: Mutant, tests: str) -> bool:
    """Whether the mutant's tests pass with it."""
    path = tree / mutant.path
    source = path.read_bytes()
    path.write_bytes(mutant.of(source))
    try:
        same_name = tree / tests / f"test_{path.stem.strip('_')}.py"
        first = str(same_name.relative_to(tree)) if same_name.exists() else ""
        return (not first or passes(tree, first)) and passes(tree, tests)
    finally:
        path.write_bytes(source)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=30, help="how many mistakes; default 30")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default 0")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time; default 2")
    asked = parser.parse_args()
    every = all_mutants(ROOT)
    drawn = random.Random(asked.seed).sample(list(every), min(asked.number, len(every)))
    with tempfile.TemporaryDirectory(prefix="mptune-mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", "runs", "build", "*.egg-info"
        )
        for job in range(asked.jobs):
            trees.put(
                Path(shutil.copytree(ROOT, Path(folder, f"{job}", ROOT.name), ignore=ignored))
            )

        def with_tree(check, *given):  # type: ignore[no-untyped-def]
            tree = trees.get()
            try:
                return check(tree, *given)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(asked.jobs) as pool:
            unchanged = sorted({every[mutant] for mutant in drawn})
            results = pool.map(lambda tests: with_tree(passes, tests), unchanged)
            if failing := [
                tests for tests, passed in zip(unchanged, results, strict=True) if not passed
            ]:
                print(f"without a mistake these fail already: {', '.join(failing)}")
                return 2
            outcomes = pool.map(lambda m: with_tree(survives, m, every[m]), drawn)
            survivors = 0
            for mutant, survived in zip(drawn, outcomes, strict=True):
                survivors += survived
                print(f"{'SURVIVED' if survived else 'killed'}  {mutant.path}:{mutant.line}")
                print(mutant.difference((ROOT / mutant.path).read_bytes()), flush=True)
    print(f"{len(drawn) - survivors} of {len(drawn)} killed; there are {len(every)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
