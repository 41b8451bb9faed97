"""Arms wait in the queue."""

from __future__ import annotations

from mptune.paths import RunDirectory
from mptune.spec.schema import Pruner
from mptune.study.queue import enqueue_arms
from tests.search.drivers import driver, found


def test_a_named_arm_is_never_pruned(run: RunDirectory) -> None:
    made = driver(run, trials=6, pruner=Pruner(kind="median", startup_trials=1))
    enqueue_arms(made.study, [("best", {"rate": 0.4}), ("worst", {"rate": 0.95})])
    made.run()
    records = found(run)
    assert [r.arm for r in records[:3]] == ["best", "worst", None]
    assert records[1].state == "COMPLETE"


def test_arms_are_queued_once(run: RunDirectory) -> None:
    arms = [("a", {"rate": 0.1}), ("b", {"rate": 0.2})]
    made = driver(run)
    enqueue_arms(made.study, arms[:1])
    enqueue_arms(made.study, arms)
    enqueue_arms(made.study, arms)
    assert [t.user_attrs["arm"] for t in made.study.trials] == ["a", "b"]
