"""A whole search gives the stored figures: undisturbed, killed, interrupted and replayed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mptune.cli import main
from tests.golden import cases, fake, figures, stored
from tests.golden.figures import Figure
from tests.report.test_contradictions import contradictions


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="module")
def run(cache: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory."""
    made = tmp_path_factory.mktemp("golden") / "run"
    cases.search(made)
    return made


def test_a_search_gives_the_stored_figures(run: Path) -> None:
    assert stored.differences("search", figures.of_run(run, "golden")) == []


def test_its_report_does_not_contradict_itself(run: Path) -> None:
    page = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert contradictions(page) == []


def test_it_has_every_kind_of_outcome(run: Path) -> None:
    """So that a figure of each is stored."""
    found = figures.of_run(run, "golden")
    states = {value for name, value in found.items() if name.endswith(".state")}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    verdicts = {value for name, value in found.items() if name.endswith(".verdict")}
    assert verdicts == {"better", "few sizes", "undecided"}
    seeds = {
        value for name, value in found.items() if name.startswith("difference") if "look" in name
    }
    assert len(seeds) > 1, "the arms are decided at different looks"
    assert found["law.gap.exists"]
    assert found["law.best_rate.exists"]


def test_a_search_killed_twice_and_interrupted_gives_the_same_figures(
    run: Path, tmp_path: Path
) -> None:
    again = [*cases.SEARCH, "--run-dir", str(tmp_path / "run")]
    for place, code in (
        ("golden:9:SIGKILL", -signal.SIGKILL),
        ("golden/confirm:2:SIGINT", 130),
        ("golden/compare:7:SIGKILL", -signal.SIGKILL),
    ):
        done = cases.command("tests.golden.fake", again, disturb=place)
        assert done.returncode == code, done.stdout
    assert fake.main(again) == 0
    expected, found = figures.of_run(run, "golden"), figures.of_run(tmp_path / "run", "golden")
    assert list(stored.compare(expected, found)) == []


def test_a_replayed_bundle_gives_the_same_figures(run: Path, tmp_path: Path) -> None:
    bundle, kept = str(tmp_path / "bundle.zip"), tmp_path / "kept"
    assert main(["bundle", str(run), "--out", bundle]) == 0
    assert main(["replay", bundle, "--into", str(kept)]) == 0
    expected, found = figures.of_run(run, "golden"), figures.of_run(kept, "golden")
    assert list(stored.compare(expected, found)) == []


def test_the_quickstart_proposes_the_stored_trials(
    cache: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert stored.differences("quickstart", cases.quickstart(tmp_path / "run")) == []


def test_trials_have_the_stored_hashes() -> None:
    assert stored.differences("hashes", cases.hashes()) == []


def test_a_difference_is_named() -> None:
    was: dict[str, Figure] = {"a": 1.0, "b": "x", "c": 2, "d": 1.0}
    now: dict[str, Figure] = {"a": 1.0 + 1e-15, "b": "x", "c": 2.0, "e": None}
    assert list(stored.compare(was, now)) == [
        "a: stored 1.0, found 1.000000000000001",
        "c: stored 2, found 2.0",
        "d: stored 1.0, found missing",
        "e: stored missing, found None",
    ]
    assert not list(stored.compare({"a": 1.0}, {"a": 1.0 + 1e-9}, rel=1e-8))
