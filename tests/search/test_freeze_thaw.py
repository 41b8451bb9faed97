"""A search whose sampler decides at every rung what runs next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mptune.paths import RunDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Pruner
from mptune.study.records import ended_trials, is_paused
from mptune.trial import Started
from tests import fakes, studies
from tests.search.drivers import LastFirst, Watcher, driver, found, kill
from tests.search.test_pausing import checkpoint, judged, outcomes

RUNGS = (0.125, 0.25, 0.5, 0.75)
TRIALS = 9


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
        assert decided[number][0]["progress"] == RUNGS[0]
    assert len({tuple(t.params.items()) for t in trials[:4]}) == 4
    assert [(t.asked or {})["repeat"] for t in trials[:4]] == [0] * 4


def test_few_policies_are_trained_to_their_end_and_these_again(undisturbed: RunDirectory) -> None:
    trials, decided = found(undisturbed), judged(undisturbed)
    finished = [t for t in trials if t.finished]
    assert len(trials) > TRIALS
    assert used(undisturbed) <= TRIALS
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


def test_a_trial_that_went_on_and_runs_is_known_as_it_was_paused(
    run: RunDirectory, undisturbed: RunDirectory
) -> None:
    """Whether a search ends must not depend on what its driver remembers."""
    kill(run, __name__, "resumed 1")
    study = studies.storage(run).load("search")
    assert study is not None
    (runs,) = [t for t in study.trials if t.state.name == "RUNNING" and not is_paused(t)]
    trial = ended_trials(study, "search", ())[runs.number]
    assert (trial.state, trial.reason) == ("PRUNED", "paused")
    stopped = [d for d in judged(run)[runs.number] if d["decision"] == "continue"][-1]
    assert trial.rungs[-1][0] == stopped["progress"]


KILLED_WITH: dict[str, Any] = {}


def test_a_search_killed_again_and_again_decides_the_same(
    run: RunDirectory, undisturbed: RunDirectory
) -> None:
    for at in ("paused 2", "rung 7", "stopped 3", "started 4"):
        kill(run, __name__, at)
    search(run).run()
    assert outcomes(run) == outcomes(undisturbed)


@pytest.mark.parametrize(("trials", "concurrency"), [(1, 1), (2, 1), (3, 3), (5, 2)])
def test_trials_are_a_budget_of_whole_trainings(
    run: RunDirectory, trials: int, concurrency: int
) -> None:
    watching = Watcher()
    search(run, trials=trials, concurrency=concurrency, observer=watching).run()
    assert trials - 0.875 <= used(run) <= trials
    assert any(t.finished for t in found(run)), "what is left goes to paused trials"
    assert (trials == 1) == (len(found(run)) == 1)
    if concurrency == 1:
        starts = [e for e in watching.events if isinstance(e, Started)]
        pauses = sum(d["decision"] == "pause" for of in judged(run) for d in of)
        assert len(starts) == pauses + sum(t.finished for t in found(run))


def used(run: RunDirectory) -> float:
    """Trainings that were used, by what the workers trained."""
    return sum(1.0 if t.finished else t.rungs[-1][0] for t in found(run))


def test_a_larger_number_of_trials_goes_on(run: RunDirectory) -> None:
    search(run, trials=3).run()
    before = [t.number for t in found(run) if t.finished]
    search(run, trials=5).run()
    assert {t.number for t in found(run) if t.finished} > set(before)
    assert 5 - 0.875 <= used(run) <= 5
