"""The study driver on a fake worker: states, resume, order, pruning, and what survives a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mptune.errors import InterruptedSearch, NoResultError
from mptune.paths import RunDirectory
from mptune.search.budget import Budget
from mptune.spec.schema import Pruner
from mptune.study.queue import enqueue_arms
from mptune.trial import Event, TrialSpec
from tests import studies
from tests.search.drivers import VirtualClock, Watcher, driver, found, ranking


def test_every_trial_ends_complete_with_its_numbers(run: RunDirectory) -> None:
    driver(run).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE"] * 8
    trial = optuna.load_study(study_name="demo", storage=studies.storage(run, None).open()).trials[
        0
    ]
    attrs = trial.user_attrs
    se = attrs["LML: standard error (nats per token)"]
    words = f"{trial.value:.4f} ± {se:.2g} nats per token (one standard error)"
    assert attrs["LML"].startswith(words)
    assert attrs["Loss by mask rate (nats per masked token; not used for ranking)"].keys()
    assert {"flops", "tokens", "total_s"} <= attrs["cost"].keys()
    assert {"label", "seed", "fingerprint"} <= attrs.keys()
    assert not {"result", "trial_spec"} & attrs.keys(), "a dashboard shows thousands of characters"
    assert records[0].seconds == attrs["cost"]["total_s"]


def test_failures_are_told_with_their_reason_and_the_search_goes_on(run: RunDirectory) -> None:
    bad = {1: {"behaviour": "nan"}, 2: {"behaviour": "crash"}}
    driver(run, behaviours=bad).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE", "FAIL", "FAIL"] + ["COMPLETE"] * 5
    assert records[1].reason == "non_finite_loss"
    assert records[2].reason == "error"
    assert records[2].detail


def test_want_of_memory_is_a_failure_everywhere(run: RunDirectory) -> None:
    driver(run, trials=4, behaviours={1: {"behaviour": "memory"}}).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (records[1].reason, records[1].detail) == ("out_of_memory", "no memory at step 10")


def test_searches_that_never_fit_stop_early(run: RunDirectory) -> None:
    every = {n: {"behaviour": "memory"} for n in range(8)}
    with pytest.raises(NoResultError, match=r"the first 5 trials all failed.*out_of_memory"):
        driver(run, behaviours=every).run()


def test_what_cannot_fit_is_refused_before_it_is_submitted(run: RunDirectory) -> None:
    """The samplers learn it as what ran out of memory; even the first trials may be refused."""
    watcher = Watcher()

    def preflight(spec: TrialSpec) -> str | None:
        return "it needs 9 GB" if spec.number < 6 else None

    driver(run, observer=watcher, preflight=preflight).run()
    records = found(run)
    assert [r.state for r in records] == ["FAIL"] * 6 + ["COMPLETE"] * 2
    assert {(r.reason, r.detail) for r in records[:6]} == {("out_of_memory", "it needs 9 GB")}
    opened = studies.create(run, None, "demo")
    assert [t.constraints for t in opened.trials[:6]] == [{"memory": 1.0}] * 6
    assert {e.number for e in watcher.events if e.type == "started"} == {6, 7}


def test_a_resumed_search_refuses_the_same(run: RunDirectory, tmp_path: Path) -> None:
    def preflight(spec: TrialSpec) -> str | None:
        return "too large" if spec.policy["rate"] > 0.5 else None

    undisturbed = RunDirectory(tmp_path / "other")
    driver(undisturbed, preflight=preflight).run()
    asked = threading.Event()
    ran = [r.number for r in found(undisturbed) if r.reason is None]
    observer = _Interrupting(ran[2], asked)
    first = driver(run, observer=observer, interrupted=asked, preflight=preflight)
    with pytest.raises(InterruptedSearch):
        first.run()
    driver(run, preflight=preflight).run()
    assert ranking(run) == ranking(undisturbed)
    reasons = [r.reason for r in found(run)]
    assert reasons == [r.reason for r in found(undisturbed)]
    assert 0 < reasons.count("out_of_memory") < len(reasons)


def test_pruned_trials_are_pruned_with_their_rung(run: RunDirectory) -> None:
    pruner = Pruner(kind="median", startup_trials=2)
    driver(run, trials=12, pruner=pruner).run()
    pruned = [r for r in found(run) if r.state == "PRUNED"]
    assert pruned
    assert all(r.reason == "pruned" and r.rungs[0][0] == 0.5 and r.result is None for r in pruned)


def test_hopeless_searches_stop_early(run: RunDirectory) -> None:
    every = {n: {"behaviour": "nan"} for n in range(8)}
    with pytest.raises(NoResultError, match=r"the first 5 trials all failed.*non_finite_loss"):
        driver(run, behaviours=every).run()


class _Interrupting(Watcher):
    """Asks for an interrupt at the first progress of one trial."""

    def __init__(self, number: int, asked: threading.Event) -> None:
        super().__init__()
        self.number, self.asked = number, asked

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if event.type == "progress" and event.number == self.number:
            self.asked.set()


def test_an_interrupt_leaves_nothing_running_and_the_resume_is_the_same_search(
    run: RunDirectory, tmp_path: Path
) -> None:
    asked = threading.Event()
    with pytest.raises(InterruptedSearch):
        driver(run, observer=_Interrupting(3, asked), interrupted=asked).run()
    states = [r.state for r in found(run)]
    assert states == ["COMPLETE"] * 3 + ["WAITING"]
    driver(run).run()
    undisturbed = RunDirectory(tmp_path / "other")
    driver(undisturbed).run()
    assert ranking(run) == ranking(undisturbed)


KILLED = """
import sys
from pathlib import Path
from tests.search.drivers import VirtualClock, driver
from mptune.paths import RunDirectory
made = driver(RunDirectory(Path(sys.argv[1])), behaviours={n: {"step_s": 0.01} for n in range(8)})
made.run()
"""


def test_a_killed_driver_loses_nothing(run: RunDirectory, tmp_path: Path) -> None:
    before: dict[int, object] = {}
    for kill_after in (2, 4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(run.root)], cwd=Path.cwd())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            done = [r for r in found(run) if r.state == "COMPLETE"] if run.database.exists() else []
            if len(done) >= kill_after:
                break
            time.sleep(0.05)  # polling another process's database
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = {r.number: r.result for r in found(run) if r.state == "COMPLETE"}
        assert len(kept) >= kill_after
        assert before.items() <= kept.items()
        before = kept
    driver(run, behaviours={n: {"step_s": 0.01} for n in range(8)}).run()
    after = found(run)
    assert [r.state for r in after] == ["COMPLETE"] * 8
    assert all(after[n].result == result for n, result in before.items())
    undisturbed = RunDirectory(tmp_path / "other")
    driver(undisturbed).run()
    assert ranking(run) == ranking(undisturbed)


def test_a_result_that_was_not_told_is_told_without_training(run: RunDirectory) -> None:
    driver(run, trials=2).run()
    opened = studies.create(run, None, "demo")
    spec = found(run)[1].spec
    result = found(run)[1].result
    assert spec is not None
    assert result is not None
    # As a driver leaves it that dies between the worker's result and its own `tell`.
    Path(spec.directory).mkdir(parents=True, exist_ok=True)
    from mptune.paths import TrialDirectory, write_text

    fresh = RunDirectory(run.root.parent / "fresh")
    moved = spec.model_copy(update={"directory": str(fresh.root / "trials" / "0001")})
    write_text(TrialDirectory(Path(moved.directory)).result, result.model_dump_json())
    watcher = Watcher()
    driver(fresh, trials=2, observer=watcher).run()
    started = [e.number for e in watcher.events if e.type == "started"]
    assert started == [0]
    assert ranking(fresh) == ranking(run)
    assert opened.trials[1].state == TrialState.COMPLETE


def test_the_same_point_is_trained_once(run: RunDirectory) -> None:
    watcher = Watcher()
    made = driver(run, trials=3, observer=watcher)
    enqueue_arms(made.study, [(name, {"rate": 0.3}) for name in "abc"])
    made.run()
    assert [e.number for e in watcher.events if e.type == "started"] == [0]
    records = found(run)
    assert [r.same_as for r in records] == [None, 0, 0]
    assert records[0].result == records[1].result == records[2].result
    assert (run.trial(2).scores).exists()


def test_budget_stops_asking(run: RunDirectory, virtual_clock: VirtualClock) -> None:
    slow = {n: {"step_s": 0.02} for n in range(8)}
    driver(run, behaviours=slow, budget=Budget(wall_s=0.3)).run()
    assert len(found(run)) == 1
