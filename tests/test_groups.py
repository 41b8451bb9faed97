"""The table of groups names files that exist, and no test that starts Ray is left out."""

from __future__ import annotations

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
    assert [name for name in names if group(name) not in ("nodes", "drivers", "local ray")] == []


def test_a_file_without_a_group_is_one_and_the_tests_of_some_are_dealt_out() -> None:
    assert group("tests/lml/test_plan.py::test_a[1::2]") == "tests/lml/test_plan.py"
    nodeid = f"{SPREAD[0]}::test_a"
    assert group(nodeid) == nodeid
