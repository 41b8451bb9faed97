"""A search whose sampler decides at every rung what runs next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mptune.dispatch.local import LocalDispatcher
from mptune.paths import RunDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Pruner
from mptune.trial import Started, TrialSpec
from tests import fakes
from tests.search.drivers import Watcher, driver, found
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


class _LastFirst(LocalDispatcher):
    """Runs the trial that was submitted last first."""

    def submit(self, trial: TrialSpec) -> None:
        super().submit(trial)
        self._queue.rotate(1)


def test_decisions_do_not_depend_on_which_trial_is_faster(
    run: RunDirectory, tmp_path: Path
) -> None:
    other = RunDirectory(tmp_path / "other")
    search(run, concurrency=3).run()
    search(other, concurrency=3, dispatcher=_LastFirst(fakes.FAKE_WORKER)).run()
    assert outcomes(run) == outcomes(other)


KILLED = """
import os, signal, sys
from pathlib import Path
from mptune.paths import RunDirectory
from tests.search.drivers import Watcher
from tests.search.test_freeze_thaw import search

class Dying(Watcher):
    at = int(sys.argv[3])

    def happen(self, what):
        Dying.at -= what == sys.argv[2]
        if Dying.at == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish_trial(self, number, state):
        self.happen(state)

    def on_event(self, event):
        self.happen(event.type)

search(RunDirectory(Path(sys.argv[1])), observer=Dying(), concurrency=int(sys.argv[4])).run()
"""


@pytest.mark.parametrize("at", ["paused 2", "rung 7", "started 9"])
def test_a_killed_search_decides_the_same(
    run: RunDirectory, undisturbed: RunDirectory, at: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(run.root), *at.split(), "1"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    search(run).run()
    assert outcomes(run) == outcomes(undisturbed)


def test_when_no_trial_may_be_asked_the_best_paused_ones_still_end(run: RunDirectory) -> None:
    search(run, trials=5).run()
    trials = found(run)
    assert len(trials) == 5
    assert any(t.finished for t in trials)
