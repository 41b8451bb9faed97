"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from tests.test_architecture import FILES, module_of

MODULES = [module_of(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str) -> None:
    found = doctest.testmod(import_module(f"mptune.{module}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed
