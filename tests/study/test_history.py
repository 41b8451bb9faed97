"""What a driver counts is what it would read."""

from __future__ import annotations

from mptune.paths import RunDirectory
from mptune.spec.schema import Pruner
from mptune.study.history import History
from mptune.study.queue import enqueue_arms
from tests.search.drivers import driver


def test_what_was_counted_is_what_is_read(run: RunDirectory) -> None:
    """Of trials that finished, failed, had no memory, were pruned, refused, or another's twin."""
    bad = {1: {"behaviour": "nan"}, 2: {"behaviour": "memory"}}
    made = driver(run, trials=12, behaviours=bad, pruner=Pruner(kind="median", startup_trials=2))
    made.preflight = lambda spec: "too large" if spec.number == 8 else None
    enqueue_arms(made.study, [("a", {"rate": 0.9}), *[("b", {"rate": 0.4})] * 4])
    made.run()
    found = History.of(made.study)
    assert made._history == found
    assert (found.asked, found.ended, found.failed) == (12, 12, 3)
    assert found.last_failure == "out_of_memory: too large"
    assert found.refused == 1
    assert len(found.twins) < 12 - found.failed
    assert found.repeated == 1
    assert found.unrun == 2


def test_the_oldest_that_waits_is_next(run: RunDirectory) -> None:
    made = driver(run)
    enqueue_arms(made.study, [("a", {"rate": 0.1}), ("b", {"rate": 0.2})])
    history = History.of(made.study)
    assert history.next_number == 0
    history.ask(0)
    history.ask(1)
    assert history.next_number == 2
    history.wait(1)
    assert history.next_number == 1
