"""A search whose sampler decides at every rung what runs next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mptune.paths import RunDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Pruner
from mptune.trial import Started
from tests import fakes
from tests.search.drivers import LastFirst, Watcher, driver, found, kill
from tests.search.test_pausing import checkpoint, judged, outcomes

RUNGS = (0.125, 0.25, 0.5, 0.75)
TRIALS = 12


def search(run: RunDirectory, **changes: Any) -> StudyDriver:
    pruner = Pruner(kind="freeze_thaw", rungs=RUNGS)
    settings = {"trials": TRIALS, "rungs": RUNGS, "pruner": pruner, "sampler": "exposure"}
    return driver(run, **{**settings, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A search that nothing interrupts."""
    run = RunDirectory(tmp_path_factory.mktemp("undisturbed"))
    search(run).run()
    return run


def test_the_start_is_paused_at_its_first_rung(undisturbed: RunDirectory) -> None:
    trials, decided = found(undisturbed), judged(undisturbed)
    for number in range(4):
        assert decided[number][0]["decision"] == "pause"
        assert decided[number][0]["progress"] == pytest.approx(RUNGS[0], abs=0.01)
    assert len({tuple(t.params.items()) for t in trials[:4]}) == 4
    assert [(t.asked or {})["repeat"] for t in trials[:4]] == [0] * 4


def test_few_policies_are_trained_to_their_end_and_these_again(undisturbed: RunDirectory) -> None:
    trials, decided = found(undisturbed), judged(undisturbed)
    finished = [t for t in trials if t.finished]
    assert len(trials) == TRIALS
    assert {t.state for t in trials} == {"COMPLETE", "PRUNED"}
    repeats = [t for t in trials if t.asked and t.asked["repeat"]]
    assert repeats
    assert all(t.finished for t in repeats), "another seed is trained to its end"
    assert any("continue" in [d["decision"] for d in decided[t.number]] for t in finished)
    best = max(t.nats_per_token for t in finished)
    for trial in trials:
        assert trial.finished == (
            not decided[trial.number] or decided[trial.number][-1]["decision"] != "pause"
        )
        if not trial.finished:
            assert trial.reason == "pruned"
            assert not checkpoint(undisturbed, trial.number).exists()
            assert trial.rungs[-1][1] < best
    # The fake's score has its best rate at 0.4: what runs to the end is near it.
    assert all(0.2 < t.params["rate"] < 0.65 for t in finished)


def test_a_trial_goes_on_from_where_it_was_paused(run: RunDirectory) -> None:
    watching = Watcher()
    search(run, observer=watching).run()
    for number, of_trial in enumerate(judged(run)):
        paused = [d["progress"] for d in of_trial if d["decision"] == "continue"]
        starts = [
            e.resumed_at / e.total_steps
            for e in watching.events
            if isinstance(e, Started) and e.number == number
        ]
        if found(run)[number].same_as is None:
            assert starts == pytest.approx([0.0, *paused], abs=0.05)


def test_decisions_do_not_depend_on_which_trial_is_faster(
    run: RunDirectory, tmp_path: Path
) -> None:
    other = RunDirectory(tmp_path / "other")
    search(run, concurrency=3).run()
    search(other, concurrency=3, dispatcher=LastFirst(fakes.FAKE_WORKER)).run()
    assert outcomes(run) == outcomes(other)


KILLED_WITH: dict[str, Any] = {}


@pytest.mark.parametrize("at", ["paused 2", "rung 7", "started 9"])
def test_a_killed_search_decides_the_same(
    run: RunDirectory, undisturbed: RunDirectory, at: str
) -> None:
    kill(run, __name__, at)
    search(run).run()
    assert outcomes(run) == outcomes(undisturbed)


def test_when_no_trial_may_be_asked_the_best_paused_ones_still_end(run: RunDirectory) -> None:
    search(run, trials=5).run()
    trials = found(run)
    assert len(trials) == 5
    assert any(t.finished for t in trials)
