"""`tools/mutants.py` makes every kind of mistake, in code only, and each is a program."""

from __future__ import annotations

import ast

import pytest

from tools import mutants


def changed(source: str) -> set[str]:
    text = source.encode()
    return {mutant.of(text).decode() for mutant in mutants.mutants("x.py", text)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a + b", {"a - b"}),
        ("f(a) / (b)", {"f(a) * (b)"}),
        ("é < b", {"é <= b", "é > b"}),
        ("a == b", {"a != b"}),
        ("a and b", {"a or b"}),
        ("-a", {"a"}),
        ("x = 2", {"x = 3"}),
        ("x = 2.0", {"x = 3.0"}),
        ("x = np.zeros", {"x = np.ones"}),
        ("x = max", {"x = min"}),
        ("f(a)", {"pass"}),
        ("x[i] = a", {"pass"}),
        ("if a:\n    raise E", {"if not (a):\n    raise E", "if a:\n    pass"}),
        ("def f(a: int | None) -> int | None:\n    'say 2'", set()),
    ],
)
def test_mistakes(source: str, expected: set[str]) -> None:
    assert changed(source) == expected


def test_each_mistake_in_the_package_changes_its_line_and_can_be_parsed() -> None:
    found = mutants.all_mutants(mutants.ROOT)
    assert len(found) > 1000
    sources = {path: (mutants.ROOT / path).read_bytes() for path in {m.path for m in found}}
    for mutant in list(found)[::20]:
        source = sources[mutant.path]
        ast.parse(mutant.of(source))
        old, new = mutant.difference(source).splitlines()
        assert old[5:] != new[5:]


def test_every_module_has_tests() -> None:
    assert all((mutants.ROOT / tests).exists() for tests in mutants.MODULES.values())
