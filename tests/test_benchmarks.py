"""The benchmarks and scripts are not run by the tests, but what they use of the package exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    p
    for folder in ("benchmarks", "benchmarks/bed", "docs", "tools")
    for p in ROOT.glob(f"{folder}/*.py")
)


def names_of(module: Path) -> set[str]:
    """Names that a module defines or imports at its top level."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(a.asname or a.name for a in node.names)
    return found


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def missing_names(text: str) -> list[str]:
    """Names from the repository's packages that are imported, or used of a module, but missing."""
    tree = ast.parse(text)
    wanted: list[tuple[str, str]] = []
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                wanted.append((node.module, name.name))
                if file_of(f"{node.module}.{name.name}").exists():
                    modules[name.asname or name.name] = f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=alias), attr=attr) if alias in modules:
                wanted.append((modules[alias], attr))
    missing = []
    for module, name in wanted:
        if module.split(".")[0] in ("mptune", "tests", "benchmarks"):
            path = file_of(module)
            known = names_of(path) if path.exists() else set()
            if name not in known and not file_of(f"{module}.{name}").exists():
                missing.append(f"{module}.{name}")
    return missing


@pytest.mark.parametrize("path", SCRIPTS, ids=[str(p.relative_to(ROOT)) for p in SCRIPTS])
def test_what_a_script_uses_exists(path: Path) -> None:
    assert missing_names(path.read_text(encoding="utf-8")) == []


def test_a_missing_name_is_found() -> None:
    text = """
from mptune import errors
from mptune.errors import InputError, Nothing
from mptune.nowhere import x
errors.DispatchError, errors.Nowhere
"""
    assert missing_names(text) == [
        *("mptune.errors.Nothing", "mptune.nowhere.x", "mptune.errors.Nowhere")
    ]
