"""Trials that are unlikely to end near the best are paused at a checkpoint, and some go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mptune.errors import InterruptedSearch
from mptune.paths import RunDirectory, TrialDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Pruner
from mptune.study.optuna_private import Database
from mptune.study.records import JUDGED, PAUSED
from mptune.trial import Started, Stopped, Trial
from tests import fakes, studies
from tests.search.drivers import LastFirst, Watcher, driver, found, kill

LATE = {n: {"late": -0.5} for n in (9, 10, 12)}
"""They end far worse than their rungs say: then nothing is sure of the paused ones either."""


def search(run: RunDirectory, **changes: Any) -> StudyDriver:
    pruner = Pruner(kind="predictive", rungs=(0.25, 0.5))
    settings = {"trials": 16, "rungs": pruner.rungs, "pruner": pruner, "error": 0.2, **changes}
    return driver(run, **settings)


def checkpoint(run: RunDirectory, number: int) -> Path:
    return TrialDirectory(run.trial(number).root).checkpoint


def judged(run: RunDirectory) -> list[list[dict[str, Any]]]:
    """The decisions about each trial."""
    study = studies.storage(run).load("search")
    assert study is not None
    return [trial.user_attrs.get(JUDGED, []) for trial in study.trials]


def outcomes(run: RunDirectory) -> list[Any]:
    """What a search did: trials with their scores, and all decisions."""
    trials = [(t.params, t.state, t.reason, t.rungs, t.finished and t.nats_per_token)
              for t in found(run)]  # fmt: skip
    return [trials, judged(run)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The outcomes of a search that nothing interrupts."""
    run = RunDirectory(tmp_path_factory.mktemp("undisturbed"))
    search(run, behaviours=LATE).run()
    return outcomes(run)


class Watching(Watcher):
    """Keeps the paused trials, as they are at that moment."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run, self.paused = run, list[Trial]()

    def finish_trial(self, number: int, state: str) -> None:
        super().finish_trial(number, state)
        if state == PAUSED:
            self.paused.append(found(self.run)[number])
            assert checkpoint(self.run, number).exists()


def test_bad_trials_are_paused_and_are_pruned_at_the_end(run: RunDirectory) -> None:
    watching = Watching(run)
    search(run, observer=watching).run()
    trials, decided = found(run), judged(run)
    pruned = [t for t in trials if t.state == "PRUNED"]
    assert [t.number for t in watching.paused] == [t.number for t in pruned]
    assert len(pruned) >= 3
    assert {(t.state, t.reason) for t in watching.paused} == {("PRUNED", "paused")}
    assert {e.reason for e in watching.events if isinstance(e, Stopped)} == {"paused"}
    for trial in pruned:
        assert trial.reason == "pruned"
        assert "unlikely to end near the best" in f"{trial.detail}"
        assert not checkpoint(run, trial.number).exists()
        last = decided[trial.number][-1]
        assert last["decision"] == "pause"
        assert last["progress"] == trial.rungs[-1][0]
        assert 0 <= last["probability"] < last["threshold"] <= 0.25 * 0.2
        assert last["finished"] >= 6
        assert last["delta"] >= 1 / 32
    best = max((t for t in trials if t.finished), key=lambda t: t.nats_per_token)
    assert {found["decision"] for found in decided[best.number]} == {"go on"}
    assert [found["probability"] for found in decided[5]] == [None, None]
    assert None not in [found["probability"] for found in decided[6]]


def test_a_paused_trial_goes_on_when_curves_turn_out_to_cross(run: RunDirectory) -> None:
    watching = Watching(run)
    search(run, observer=watching, behaviours=LATE).run()
    decisions = [[d["decision"] for d in of_trial] for of_trial in judged(run)]
    continued = [n for n, of_trial in enumerate(decisions) if "continue" in of_trial]
    assert continued
    for number in continued:
        where = decisions[number].index("continue")
        paused, again = judged(run)[number][where - 1 : where + 1]
        assert paused["decision"] == "pause"
        assert again["finished"] > paused["finished"]
        assert again["probability"] > paused["probability"]
        assert again["threshold"] == 0.2
        stopped = next(e.step for e in _of(watching, number, Stopped))
        assert [e.resumed_at for e in _of(watching, number, Started)] == [0, stopped]
        assert found(run)[number].finished == (decisions[number][-1] != "pause")
    assert any(found(run)[number].finished for number in continued)


def _of(watching: Watching, number: int, kind: type) -> list[Any]:
    return [e for e in watching.events if isinstance(e, kind) and e.number == number]


def test_ordered_decisions_do_not_depend_on_which_trial_is_faster(
    run: RunDirectory, tmp_path: Path
) -> None:
    other = RunDirectory(tmp_path / "other")
    options: dict[str, Any] = {"concurrency": 3, "behaviours": LATE, "trials": 20, "error": 0.5}
    search(run, **options).run()
    search(other, dispatcher=LastFirst(fakes.FAKE_WORKER), **options).run()
    assert sum(t.state == "PRUNED" for t in found(run)) >= 2
    assert outcomes(run) == outcomes(other)


KILLED_WITH: dict[str, Any] = {"behaviours": LATE}


@pytest.mark.parametrize("at", ["paused 1", "resumed 1"])
def test_a_killed_search_decides_the_same(
    run: RunDirectory, undisturbed: list[Any], at: str
) -> None:
    kill(run, __name__, at)
    assert sum(t.reason == PAUSED for t in found(run)) >= 1
    search(run, behaviours=LATE).run()
    assert outcomes(run) == undisturbed


class Killed(BaseException):
    """The driver dies."""


class Writes:
    """Counts what is written to the storage; the driver dies before write number `fatal`.

    `continued` is the number of the one with which a paused trial goes on.
    """

    def __init__(self, patch: pytest.MonkeyPatch, fatal: int | None = None) -> None:
        self.count = self.continued = 0
        for name in ("create_new_trial", "set_trial_attrs", "set_trial_state_values"):
            write = getattr(Database, name)

            def counted(*args: Any, write: Any = write, **options: Any) -> Any:
                if self.count == fatal:
                    raise Killed
                if "'decision': 'continue'" in str(args) and not self.continued:
                    self.continued = self.count
                self.count += 1
                return write(*args, **options)

            patch.setattr(Database, name, counted)


def test_a_search_of_several_trials_at_once_that_is_killed_decides_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"concurrency": 3, "behaviours": LATE, "error": 0.2}
    run = RunDirectory(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        search(run, **options).run()
    expected = outcomes(run)
    assert writes.continued
    for fatal in range(writes.continued, writes.continued + 5, 2):
        run = RunDirectory(tmp_path / f"{fatal}")
        with monkeypatch.context() as patch:
            Writes(patch, fatal)
            with pytest.raises(Killed):
                search(run, **options).run()
        search(run, **options).run()
        assert outcomes(run) == expected, fatal


def test_an_interrupt_keeps_what_is_paused(run: RunDirectory, undisturbed: list[Any]) -> None:
    class Interrupting(Watcher):
        def finish_trial(self, number: int, state: str) -> None:
            if state == PAUSED:
                first.interrupted.set()

    first = search(run, behaviours=LATE, observer=Interrupting())
    with pytest.raises(InterruptedSearch):
        first.run()
    (paused,) = [t for t in found(run) if t.reason == PAUSED]
    assert checkpoint(run, paused.number).exists()
    search(run, behaviours=LATE).run()
    assert outcomes(run) == undisturbed
