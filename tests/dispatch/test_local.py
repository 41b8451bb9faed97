"""The in-process dispatcher, on the fake worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mptune.dispatch import make
from mptune.dispatch.local import LocalDispatcher
from mptune.errors import DispatchError, InputError
from mptune.paths import TrialDirectory
from mptune.spec.schema import Resources, Score
from mptune.trial import (
    Failed,
    Finished,
    GangChanged,
    Progress,
    Rung,
    Scoring,
    Started,
    Stopped,
    TrialSpec,
)
from tests import fakes
from tests.dispatch.helpers import changes, ends, prepare_request, until_ended


@pytest.fixture
def dispatcher():
    made = LocalDispatcher(fakes.FAKE_WORKER)
    yield made
    made.close()


def trial(number: int, directory: Path, **policy: Any) -> TrialSpec:
    return fakes.trial(number, directory, policy={"kind": "fake", **policy}, rungs=(0.25,))


def test_a_trial_tells_its_story_in_order(dispatcher, tmp_path):
    dispatcher.submit(trial(3, tmp_path))
    events = until_ended(dispatcher, 3)
    kinds = [type(e) for e in events if not isinstance(e, Progress)]
    assert kinds == [GangChanged, GangChanged, Started, Rung, Scoring, Finished]
    assert [e.step for e in events if isinstance(e, Progress)] == [4, 8, 12, 16, 20]


def test_started_names_the_gang_its_process_and_the_turnaround(tmp_path):
    now = [100.0]
    dispatcher = LocalDispatcher(fakes.FAKE_WORKER, clock=lambda: now[0])
    dispatcher.submit(trial(0, tmp_path))
    (first,) = [e for e in until_ended(dispatcher, 0) if isinstance(e, Started)]
    now[0] = 104.5
    dispatcher.submit(trial(1, tmp_path))
    (second,) = [e for e in until_ended(dispatcher, 1) if isinstance(e, Started)]
    assert first.gang == second.gang == "local"
    assert first.pids == (os.getpid(),)
    assert first.turnaround_s is None
    assert second.turnaround_s == 4.5


def test_a_trial_waits_at_its_rung_for_the_decision(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    while not any(isinstance(e, Rung) for e in dispatcher.events(1)):
        pass
    assert dispatcher.events(0.01) == []
    dispatcher.decide(0, go_on=False)
    assert dispatcher.events(1) == [Stopped(number=0, reason="pruned", step=5)]


def test_a_stop_is_heard_at_a_rung_and_leaves_a_checkpoint(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    while not any(isinstance(e, Rung) for e in dispatcher.events(1)):
        pass
    dispatcher.stop(0, "interrupted")
    assert dispatcher.events(1) == [Stopped(number=0, reason="interrupted", step=5)]

    dispatcher.submit(trial(0, tmp_path))
    started = next(e for e in until_ended(dispatcher, 0) if isinstance(e, Started))
    assert started.resumed_at == 5


def test_a_queued_trial_is_dropped(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    dispatcher.submit(trial(1, tmp_path))
    dispatcher.stop(1, "pruned")
    ended = ends(until_ended(dispatcher, 0, 1))
    assert ended[1] == Stopped(number=1, reason="pruned", step=0)
    assert isinstance(ended[0], Finished)


def test_a_diverged_trial_keeps_the_worker(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, behaviour="nan"))
    dispatcher.submit(trial(1, tmp_path))
    events = until_ended(dispatcher, 0, 1)
    assert ends(events)[0].reason == "non_finite_loss"
    assert changes(events) == ["starting", "ready"]


def test_a_crash_costs_the_worker_and_leaves_a_traceback(dispatcher, tmp_path):
    crashing = trial(0, tmp_path, behaviour="crash")
    dispatcher.submit(crashing)
    dispatcher.submit(trial(1, tmp_path))
    events = until_ended(dispatcher, 0, 1)
    assert ends(events)[0] == Failed(
        number=0, reason="error", detail="RuntimeError: crashed at step 10, as asked"
    )
    assert isinstance(ends(events)[1], Finished)
    assert changes(events) == ["starting", "ready", "gone", "starting", "ready"]
    assert "_fault" in TrialDirectory(Path(crashing.directory)).traceback.read_text()


def test_a_worker_that_ends_without_a_result_failed(tmp_path):
    dispatcher = LocalDispatcher("tests.dispatch.helpers:Silent")
    dispatcher.submit(trial(0, tmp_path))
    assert ends(until_ended(dispatcher, 0))[0].reason == "error"


def test_the_worker_is_remade_after_its_share_of_trials(dispatcher, tmp_path):
    for number in range(3):
        shape = Resources(trials_per_gang=2)
        dispatcher.submit(fakes.trial(number, tmp_path, resources=shape))
    events = until_ended(dispatcher, 0, 1, 2)
    assert changes(events) == ["starting", "ready", "gone", "starting", "ready"]


def test_a_worker_that_does_not_start_fails_the_trial(tmp_path):
    dispatcher = LocalDispatcher("tests.dispatch.helpers:Missing")
    dispatcher.submit(trial(0, tmp_path))
    failed = ends(until_ended(dispatcher, 0))[0]
    assert failed.reason == "error"
    assert "has no attribute 'Missing'" in failed.detail


def test_data_is_prepared_on_the_worker(dispatcher, tmp_path):
    prepared = dispatcher.prepare(prepare_request(tmp_path, score=Score(sequences=10)))
    assert prepared.heldout_sequences == 10
    assert Path(prepared.plan).exists()


def test_missing_data_is_the_users_to_fix(dispatcher, tmp_path):
    with pytest.raises(InputError, match=r"data.path: nowhere does not exist"):
        dispatcher.prepare(
            prepare_request(tmp_path, data={"behaviour": "wrong_input", "path": "nowhere"})
        )


def test_preparing_without_a_worker_is_a_dispatch_error(tmp_path):
    with pytest.raises(DispatchError, match="the worker did not start"):
        LocalDispatcher("tests.dispatch.helpers:Missing").prepare(prepare_request(tmp_path))


def test_one_trial_at_once_whatever_it_asks_for(tmp_path):
    dispatcher = make(Resources(workers=8), local=True, address=None, runtime=fakes.FAKE_WORKER)
    dispatcher.submit(fakes.trial(0, tmp_path, resources=Resources(workers=8)))
    assert dispatcher.capacity() == 1
    assert isinstance(ends(until_ended(dispatcher, 0))[0], Finished)


def test_the_local_dispatcher_needs_no_ray():
    script = (
        "import sys; from mptune.dispatch import make; from mptune.spec.schema import Resources\n"
        "make(Resources(), local=True, address=None)\n"
        "assert not {'ray', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
