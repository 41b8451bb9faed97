"""The status of a study while trials run, and that making it costs little."""

from __future__ import annotations

import pytest

from mptune.paths import RunDirectory
from mptune.search.monitor import MAX_SHARE
from mptune.status import Status
from tests.search.drivers import driver


def pictures(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[Status]:
    """One after every round of the driver."""
    monkeypatch.setattr("mptune.search.monitor.EVERY_S", 0.0)
    monkeypatch.setattr("mptune.search.monitor.MAX_SHARE", float("inf"))
    seen: list[Status] = []
    driver(run, watchers=(seen.append,), **changes).run()
    return seen


def test_what_runs_waits_and_was_spent(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {n: {"step_s": 0.01} for n in range(8)}
    seen = pictures(run, monkeypatch, trials=3, concurrency=2, behaviours=slow)
    now = next(s for s in seen if s.running and s.running[0].progress == 0.4)
    (trial,) = now.running
    assert (trial.number, trial.state, trial.workers) == (0, "training", 1)
    assert trial.loss is not None
    assert trial.tokens_per_s == 1e5
    assert trial.left_s is not None
    assert [(t.number, t.wait.words()) for t in now.queue] == [(1, "needs 1, 0 free")]
    (gang,) = now.gangs
    assert (gang.name, gang.state, gang.trial, gang.trials) == ("local", "busy", 0, 1)
    assert now.in_flight(0)
    assert now.in_flight(1)
    assert not now.in_flight(2)
    assert 0 < now.spend.worker_seconds < seen[-1].spend.worker_seconds
    assert now.forecast.trials == 3
    assert now.forecast.worker_seconds is not None
    assert now.forecast.worker_seconds > now.spend.worker_seconds


def test_the_last_picture_is_of_the_end(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {1: {"behaviour": "nan"}}
    last = pictures(run, monkeypatch, trials=3, behaviours=bad)[-1]
    assert (last.running, last.queue) == ((), ())
    assert last.trials.model_dump() == {
        "total": 3, "used": 3, "complete": 2, "pruned": 0, "fail": 1
    }  # fmt: skip
    assert last.best is not None
    assert last.forecast.left_s == 0


def test_a_resume_counts_what_was_before(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures(run, monkeypatch, trials=2)[-1]
    first = pictures(run, monkeypatch, trials=3)[0]
    assert first.trials.complete >= 2
    assert first.best is not None
    assert before.best is not None
    assert first.best["nats_per_token"] >= before.best["nats_per_token"]
    assert first.spend.worker_seconds >= before.spend.worker_seconds


def test_making_a_status_takes_a_small_share_of_the_time(run: RunDirectory) -> None:
    now, took_s = [0.0], 0.1

    def slow(status: Status) -> None:
        now[0] += took_s

    made = driver(run, trials=1, watchers=(slow,), clock=lambda: now[0])
    made.run()
    began = now[0] - took_s
    now[0] = began + took_s / MAX_SHARE - 0.001
    assert not made._monitor.is_due()
    now[0] += 0.002
    assert made._monitor.is_due()
