"""A driver keeps to its budgets: trials are held back, stopped, and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from mptune.dispatch.local import LocalDispatcher
from mptune.errors import NoResultError
from mptune.paths import RunDirectory
from mptune.search import budget
from mptune.search.budget import Budget
from mptune.search.ledger import Ledger, Work, save_spend
from mptune.spec.schema import Training
from mptune.study.queue import enqueue_arms
from mptune.trial import Control, Event, Failed, Started, Stopped, TrialSpec
from tests import fakes, studies
from tests.search.drivers import VirtualClock, Watcher, driver, found

SLOW = {"step_s": 0.02, "tokens_per_s": 2048.0}
"""It is forecast to take 20 s, from its second word on."""


@pytest.fixture(autouse=True)
def stops_at_once(monkeypatch: pytest.MonkeyPatch, virtual_clock: VirtualClock) -> None:
    monkeypatch.setattr(budget, "STOPPING_S", 0.0)


def states(run: RunDirectory) -> list[tuple[str, str | None]]:
    return [(record.state, record.reason) for record in found(run)]


def starts(watcher: Watcher) -> list[tuple[int, int]]:
    return [(e.number, e.resumed_at) for e in watcher.events if isinstance(e, Started)]


def test_a_first_trial_that_turns_out_not_to_fit_is_stopped_and_goes_on_with_more(
    run: RunDirectory,
) -> None:
    watcher = Watcher()
    first = driver(run, behaviours={0: SLOW}, budget=Budget(worker_s=5), observer=watcher)
    first.run()
    assert states(run) == [("WAITING", "budget")] * 3
    assert all("forecast to take" in why for _, why in watcher.held)
    assert [number for number, _ in watcher.held] == [0, 1, 2]
    assert starts(watcher) == [(0, 0)]
    stopped = next(e for e in watcher.events if isinstance(e, Stopped))
    assert 8 <= stopped.step < 20
    assert first.stopped_by is not None
    assert first.stopped_by.endswith("of 5 used of search.budget_worker_seconds")
    assert studies.ledger(run, None, "demo").worker_s < 1

    watcher = Watcher()
    more = driver(run, behaviours={0: SLOW}, budget=Budget(worker_s=1e6), observer=watcher)
    more.run()
    assert states(run) == [("COMPLETE", None)] * 8
    assert starts(watcher)[0] == (0, stopped.step)
    assert more.stopped_by is None


@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_that_is_too_long_holds_up_no_other(run: RunDirectory, number: int) -> None:
    def propose(trial: optuna.Trial) -> TrialSpec:
        trial.suggest_float("rate", 0.05, 0.95)
        long = trial.number == number
        width, policy = (999, SLOW) if long else (64, {})
        return fakes.trial(
            trial.number, run.root / "trials", policy={"kind": "fake", **policy},
            model={"family": "fake", "width": width}, seed=trial.number,
        )  # fmt: skip

    driver(run, trials=4, propose=propose, budget=Budget(worker_s=5)).run()
    expected: list[tuple[str, str | None]] = [("COMPLETE", None)] * 4
    expected[number] = ("WAITING", "budget")
    assert states(run) == expected


def test_what_was_held_back_is_taken_up_when_others_took_less(run: RunDirectory) -> None:
    """The first is forecast to take 20 s; it takes 0.4, and then so are the others."""
    watcher = Watcher()
    driver(
        run, trials=4, concurrency=2, behaviours={0: {**SLOW, "steps": 5}},
        budget=Budget(worker_s=21), observer=watcher,
    ).run()  # fmt: skip
    assert states(run) == [("COMPLETE", None)] * 4
    assert {number for number, _ in watcher.held} <= {1, 2, 3}


def test_everything_stops_when_a_budget_is_spent_and_what_waits_says_why(
    run: RunDirectory,
) -> None:
    unforeseen = {n: {"step_s": 0.02} for n in range(5)}
    opened = driver(run, trials=5, behaviours=unforeseen, budget=Budget(worker_s=0.1))
    enqueue_arms(opened.study, [("early", {"rate": 0.2}), ("late", {"rate": 0.9})])
    opened.run()
    early, late = found(run)
    assert (early.state, late.state) == ("WAITING", "WAITING")
    assert (early.reason, late.reason) == ("budget", "budget")
    assert "of 0.1 used of search.budget_worker_seconds" in f"{late.detail}"
    assert 0.1 <= studies.ledger(run, None, "demo").worker_s < 0.3


def test_the_clock_stops_nothing_that_runs(run: RunDirectory) -> None:
    slow = {n: {"step_s": 0.02} for n in range(8)}
    ended = driver(run, behaviours=slow, budget=Budget(wall_s=0.3))
    enqueue_arms(ended.study, [(f"{n}", {"rate": n / 10}) for n in range(1, 9)])
    ended.run()
    complete = [r for r in found(run) if r.state == "COMPLETE"]
    assert 1 <= len(complete) < 8
    assert states(run)[len(complete) :] == [("WAITING", "budget")] * (8 - len(complete))
    assert ended.stopped_by is not None
    assert "of 0.3 used of search.budget_seconds" in ended.stopped_by


class Dying(fakes.FakeWorker):
    """Its machine fails at the end of the first attempt."""

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        events: list[Event] = []
        for event in super().run(trial, control):
            events.append(event)
            if event.type in ("started", "progress"):
                yield event
        if len(starting) == 0:
            starting.append(trial.number)
            yield Failed(number=trial.number, reason="worker_died", detail="its machine is gone")
        else:
            yield events[-1]


starting: list[int] = []


@pytest.mark.parametrize(("worker_s", "state"), [(0.75, "WAITING"), (1e6, "COMPLETE")])
def test_a_retry_needs_room_too(run: RunDirectory, worker_s: float, state: str) -> None:
    starting.clear()
    limits: dict[str, Any] = {"budget": Budget(worker_s=worker_s)}
    dispatcher = LocalDispatcher("tests.search.test_driver_budget:Dying")
    slow = {0: {"step_s": 0.02}}
    driver(run, trials=1, behaviours=slow, dispatcher=dispatcher, rungs=(), **limits).run()
    (record,) = found(run)
    assert record.state == state


def test_a_budget_of_worker_seconds_holds_over_a_resume(run: RunDirectory) -> None:
    # A trial takes 0.4 s or more; two in 0.75 s are too many even for a machine at its fastest.
    slow = {n: {"step_s": 0.02} for n in range(5)}
    driver(run, trials=5, behaviours=slow, budget=Budget(worker_s=0.75)).run()
    before, spent = states(run), studies.ledger(run, None, "demo")
    ended = before.count(("COMPLETE", None))
    assert ended <= 1
    assert spent.worker_s > 0.4 * ended - 1e-9
    assert spent.gpu_s == 0
    assert before[ended:] == [("WAITING", "budget")] * (len(before) - ended)
    assert "of search.budget_worker_seconds" in f"{found(run)[-1].detail}"
    driver(run, trials=5, behaviours=slow, budget=Budget(worker_s=0.75)).run()
    assert states(run) == before
    assert studies.ledger(run, None, "demo") == spent
    driver(run, trials=5, behaviours=slow, budget=Budget(worker_s=1e6)).run()
    assert states(run) == [("COMPLETE", None)] * 5


@pytest.mark.parametrize("worker_s", [0.9, 1.5])
def test_none_is_taken_up_again_only_to_be_stopped_at_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, worker_s: float
) -> None:
    """The rest of one that has just been stopped is short, and still there is no room for it."""
    monkeypatch.setattr(budget, "STOPPING_S", 1.0)
    slow = {n: {"step_s": 0.02} for n in range(5)}
    watcher = Watcher()
    driver(run, behaviours=slow, budget=Budget(worker_s=worker_s), observer=watcher).run()
    tries = [number for number, _ in starts(watcher)]
    assert len(tries) == len(set(tries))


@pytest.mark.parametrize(("wall_s", "state"), [(None, "COMPLETE"), (0.2, "WAITING")])
def test_what_was_held_back_starts_when_there_is_room_unless_the_time_is_up(
    run: RunDirectory, wall_s: float | None, state: str
) -> None:
    """Both are forecast to take as long as the longest, 3 s; the first takes 0.4."""
    slow, limits = {0: {"step_s": 0.02}}, Budget(worker_s=5, wall_s=wall_s)
    held = driver(run, trials=2, concurrency=2, behaviours=slow, budget=limits)
    save_spend(held.study, 0.0, Ledger(most=Work(3.0)), 0.0)
    held.run()
    assert [number for number, _ in held.observer.held] == [1]  # type: ignore[attr-defined]
    assert [record.state for record in found(run)] == ["COMPLETE", state]


def test_a_search_in_which_all_fail_leaves_what_was_held_back_in_the_queue(
    run: RunDirectory,
) -> None:
    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = SLOW if trial.number == 0 else {"behaviour": "nan"}
        tokens = 1e9 if trial.number == 0 else 1e4
        return fakes.trial(
            trial.number, run.root / "trials", policy={"kind": "fake", **policy},
            training=Training(budget_tokens=tokens), seed=trial.number,
        )  # fmt: skip

    with pytest.raises(NoResultError):
        driver(run, propose=propose, budget=Budget(worker_s=50)).run()
    assert states(run)[0] == ("WAITING", "budget")
    assert states(run)[1:] == [("FAIL", "non_finite_loss")] * 5
