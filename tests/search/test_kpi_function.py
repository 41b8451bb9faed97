"""The user's own function runs in a process of its own, whose failures harm nothing."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Timer

import pytest

from mptune.errors import InterruptedSearch
from mptune.search.kpi import measure
from mptune.spec.schema import Score

FUNCTIONS = """
import sys, time
def good(model): print("chatter"); return len((model / "config.json").read_text())
def pair(model): return 2.0, 0.5
def raises(model): raise RuntimeError("no such benchmark")
def nan(model): return float("nan")
def words(model): return "high"
def dies(model): sys.exit("gone")
def slow(model): time.sleep(60)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "team_kpi.py").write_text(FUNCTIONS, encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("name", "value", "se", "error"),
    [
        ("good", 2.0, None, None),
        ("pair", 2.0, 0.5, None),
        ("raises", None, None, "RuntimeError: no such benchmark"),
        ("nan", None, None, "its value is nan"),
        ("words", None, None, "ValueError: could not convert string to float: 'high'"),
        ("dies", None, None, "its process ended with 1: gone"),
        ("missing", None, None, "AttributeError: module 'team_kpi' has no attribute 'missing'"),
    ],
)
def test_a_function_fails_only_itself(model, name, value, se, error):
    found = measure(f"team_kpi:{name}", model, timeout_s=60)
    assert (found.value, found.se, found.error) == (value, se, error)


def test_a_function_that_does_not_end_is_ended(model):
    assert measure("team_kpi:slow", model, 0.5).error == "took longer than 0.5 s"


def test_a_stop_ends_it(model: Path) -> None:
    stop = Event()
    Timer(0.3, stop.set).start()
    with pytest.raises(InterruptedSearch):
        measure("team_kpi:slow", model, 60, stop)


@pytest.mark.parametrize("name", ["kpi", "a.b.c", "a:b:c", "a b:c", ":f"])
def test_what_names_no_function_is_refused(name):
    with pytest.raises(ValueError, match="kpi"):
        Score(kpi=name)
