"""Groups of tests: files that exist, and every test that starts Ray. Which tests are repeated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.groups import GROUPS, SPREAD, group

ROOT = Path(__file__).parents[1]
STARTS_RAY = ("RayDispatcher(", "ray_cluster(", "ray.init(")


def test_every_pattern_names_a_file() -> None:
    patterns = [pattern for files in (*GROUPS.values(), SPREAD) for pattern in files]
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_tests_that_start_ray_are_in_a_group() -> None:
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    start = [p for p in paths if any(word in p.read_text("utf-8") for word in STARTS_RAY)]
    assert len(start) > 5
    names = [str(path.relative_to(ROOT)) for path in start]
    assert [name for name in names if group(name) != "ray"] == []


def test_a_file_without_a_group_is_one_and_the_tests_of_some_are_dealt_out() -> None:
    assert group("tests/lml/test_plan.py::test_a[1::2]") == "tests/lml/test_plan.py"
    nodeid = f"{SPREAD[0]}::test_a"
    assert group(nodeid) == nodeid


FAILING = """
import pytest

made = []

@pytest.fixture(scope="session")
def cluster():
    made.append("cluster")
    yield
    made.append("closed")

@pytest.fixture(scope="module")
def searches(cluster):
    made.append("searches")

@pytest.mark.slow
def test_passes_with_new_fixtures(searches):
    assert made == ["cluster", "searches", "closed", "cluster", "searches"]

@pytest.mark.slow
@pytest.mark.timeout(0.5)
def test_hangs_twice():
    __import__("time").sleep(30)

def test_without_processes():
    assert made == []
"""


def test_a_slow_test_that_fails_is_repeated_once_with_new_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FAILING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-o", "markers=slow",
         "--timeout=60", "--reruns=1", "-rR", "--tb=no", str(tmp_path)],
        cwd=ROOT, text=True, capture_output=True, timeout=150,
    )  # fmt: skip
    lines = [re.sub(r" \S*::", " ", line) for line in done.stdout.splitlines()[-5:-1]]
    assert lines == [
        "RERUN test_passes_with_new_fixtures", "PASSED test_passes_with_new_fixtures",
        "RERUN test_hangs_twice", "FAILED test_hangs_twice",
    ], done.stdout  # fmt: skip
    assert "2 failed, 1 passed, 2 rerun" in done.stdout
