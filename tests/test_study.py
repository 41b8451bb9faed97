"""The study driver on a fake worker: states, resume, order, pruning, and what survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mptune import study
from mptune.dispatch.local import LocalDispatcher
from mptune.errors import InputError, InterruptedSearch, NoResultError
from mptune.paths import RunDirectory
from mptune.spec import Pruner, Sampler, Search
from mptune.trial import Event, Failed, TrialSpec
from tests import fakes

SEARCH = Search(trials=8, seed=3, sampler=Sampler(startup_trials=2))


class Watcher:
    """An observer that keeps what it saw."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.events: list[Event] = []

    def trial(self, number: int, label: str, size: str) -> None:
        self.states[number] = "asked"

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def finish_trial(self, number: int, state: str) -> None:
        self.states[number] = state


def driver(
    run: RunDirectory, *, trials: int = 8, behaviours: dict[int, dict[str, Any]] | None = None,
    rungs: tuple[float, ...] = (0.5,), pruner: Pruner | None = None, **changes: Any,
) -> study.StudyDriver:  # fmt: skip
    opened = study.open_study(
        run, None, "demo", pruner=study.make_pruner(pruner or Pruner(kind="none"))
    )
    known = behaviours or {}

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = {"kind": "fake", "rate": trial.suggest_float("rate", 0.05, 0.95)}
        policy |= known.get(trial.number, {})
        return fakes.trial(
            trial.number, run.root / "trials", policy=policy, rungs=rungs,
            label=f"fake {policy['rate']:.3f} · tiny",
        )  # fmt: skip

    defaults: dict[str, Any] = {
        "dispatcher": LocalDispatcher(fakes.FAKE_WORKER),
        "observer": Watcher(),
        "sampler": lambda number: study.make_sampler(SEARCH, number),
        "concurrency": 1,
    }
    return study.StudyDriver(
        study=opened, trials=trials, propose=propose, **{**defaults, **changes}
    )


def found(run: RunDirectory) -> list[study.TrialRecord]:
    return study.records(run, None, "demo")


def ranking(run: RunDirectory) -> list[tuple[int, dict[str, Any], float | None]]:
    return [(r.number, dict(r.params), r.result and r.result.lml.nats_per_token)
            for r in found(run)]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_every_trial_ends_complete_with_its_numbers(run: RunDirectory) -> None:
    driver(run).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE"] * 8
    trial = study.open_study(run, None, "demo", pruner=optuna.pruners.NopPruner()).trials[0]
    for key in ("lml_nats_per_token", "lml_se_nats_per_token", "cost_flops", "cost_total_s",
                "seed", "versions", "policy", "size", "fingerprint"):  # fmt: skip
        assert key in trial.user_attrs
    assert trial.value == pytest.approx(trial.user_attrs["lml_nats_per_token"])


def test_failures_are_told_with_their_reason_and_the_search_goes_on(run: RunDirectory) -> None:
    bad = {1: {"behaviour": "nan"}, 2: {"behaviour": "crash"}}
    driver(run, behaviours=bad).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE", "FAIL", "FAIL"] + ["COMPLETE"] * 5
    assert records[1].reason == "non_finite_loss"
    assert records[2].reason == "error"
    assert records[2].detail


def _beyond(kind: Any, trials: int, tell: Callable[..., None]) -> int:
    """How many of the last half do not fit in memory: wider is better, and above .5 is too wide."""
    search, beyond = Search(sampler=Sampler(kind=kind, startup_trials=6)), []
    opened = optuna.create_study(direction="maximize")
    for number in range(trials):
        opened.sampler = study.make_sampler(search, number)
        trial = opened.ask()
        width, rate = trial.suggest_float("width", 0, 1), trial.suggest_float("rate", 0, 1)
        beyond.append(width > 0.5)
        if beyond[-1]:
            failure = Failed(number=number, reason="out_of_memory", detail="no room")
            tell(opened, trial, failure)
        else:
            opened.tell(number, width - (rate - 0.3) ** 2)
    return sum(beyond[trials // 2 :])


def _as_failed(opened: optuna.Study, trial: optuna.Trial, failure: Failed) -> None:
    opened.tell(trial.number, state=TrialState.FAIL)


@pytest.mark.parametrize(
    ("kind", "trials"), [("tpe", 40), pytest.param("gp", 16, marks=pytest.mark.slow)]
)
def test_samplers_learn_what_does_not_fit_in_memory(kind: str, trials: int) -> None:
    """What is told as failed they leave out, and ask for widths without end that do not fit."""
    assert _beyond(kind, trials, study._tell_failure) <= trials // 4
    assert _beyond("tpe", 40, _as_failed) == 20


def test_want_of_memory_is_a_failure_everywhere(run: RunDirectory) -> None:
    driver(run, trials=4, behaviours={1: {"behaviour": "memory"}}).run()
    records = found(run)
    assert [r.state for r in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (records[1].reason, records[1].detail) == ("out_of_memory", "no memory at step 10")


def test_searches_that_never_fit_stop_early(run: RunDirectory) -> None:
    every = {n: {"behaviour": "memory"} for n in range(8)}
    with pytest.raises(NoResultError, match=r"the first 5 trials all failed.*out_of_memory"):
        driver(run, behaviours=every).run()


def test_pruned_trials_are_pruned_with_their_rung(run: RunDirectory) -> None:
    pruner = Pruner(kind="median", startup_trials=2)
    driver(run, trials=12, pruner=pruner).run()
    pruned = [r for r in found(run) if r.state == "PRUNED"]
    assert pruned
    assert all(r.reason == "pruned" and 50 in r.rungs and r.result is None for r in pruned)


def test_a_named_arm_is_never_pruned(run: RunDirectory) -> None:
    made = driver(run, trials=6, pruner=Pruner(kind="median", startup_trials=1))
    study.enqueue_arms(made.study, [("best", {"rate": 0.4}), ("worst", {"rate": 0.95})])
    made.run()
    records = found(run)
    assert [r.arm for r in records[:3]] == ["best", "worst", None]
    assert records[1].state == "COMPLETE"


def test_arms_are_queued_once(run: RunDirectory) -> None:
    arms = [("a", {"rate": 0.1}), ("b", {"rate": 0.2})]
    made = driver(run)
    study.enqueue_arms(made.study, arms[:1])
    study.enqueue_arms(made.study, arms)
    study.enqueue_arms(made.study, arms)
    assert [t.user_attrs["arm"] for t in made.study.trials] == ["a", "b"]


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
from tests.test_study import driver
from mptune.paths import RunDirectory
made = driver(RunDirectory(Path(sys.argv[1])), behaviours={n: {"step_s": 0.01} for n in range(8)})
made.run()
"""


@pytest.mark.parametrize("kill_after", [2, 4])
def test_a_killed_driver_loses_nothing(run: RunDirectory, tmp_path: Path, kill_after: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(run.root)], cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        done = [r for r in found(run) if r.state == "COMPLETE"] if run.database.exists() else []
        if len(done) >= kill_after:
            break
        time.sleep(0.05)  # polling another process's database
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {r.number: r.result for r in found(run) if r.state == "COMPLETE"}
    assert len(before) >= kill_after
    driver(run, behaviours={n: {"step_s": 0.01} for n in range(8)}).run()
    after = found(run)
    assert [r.state for r in after] == ["COMPLETE"] * 8
    assert all(after[n].result == result for n, result in before.items())
    undisturbed = RunDirectory(tmp_path / "other")
    driver(undisturbed).run()
    assert ranking(run) == ranking(undisturbed)


def test_a_result_that_was_not_told_is_told_without_training(run: RunDirectory) -> None:
    driver(run, trials=2).run()
    opened = study.open_study(run, None, "demo", pruner=optuna.pruners.NopPruner())
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
    study.enqueue_arms(made.study, [(name, {"rate": 0.3}) for name in "abc"])
    made.run()
    assert [e.number for e in watcher.events if e.type == "started"] == [0]
    records = found(run)
    assert [r.same_as for r in records] == [None, 0, 0]
    assert records[0].result == records[1].result == records[2].result
    assert (run.trial(2).scores).exists()


def test_budget_stops_asking(run: RunDirectory) -> None:
    slow = {n: {"step_s": 0.02} for n in range(8)}
    driver(run, behaviours=slow, budget_seconds=0.3).run()
    assert 1 <= len(found(run)) < 8


def test_a_budget_of_worker_seconds_holds_over_a_resume(run: RunDirectory) -> None:
    slow = {n: {"step_s": 0.01} for n in range(8)}  # 0.2 s or a little more each
    driver(run, behaviours=slow, budget_worker_seconds=0.7).run()
    ended, spent = len(found(run)), study.ledger(run, None, "demo")
    assert 1 <= ended <= 3
    assert 0.2 * ended <= spent.worker_s
    assert spent.gpu_s == 0
    driver(run, behaviours=slow, budget_worker_seconds=0.7).run()
    assert len(found(run)) == ended
    assert study.ledger(run, None, "demo") == spent
    driver(run, behaviours=slow, budget_worker_seconds=1e6).run()
    assert len(found(run)) == 8


def test_a_second_driver_is_refused_and_names_the_first(run: RunDirectory) -> None:
    with study.driver_lock(run):
        assert study.is_driven(run)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), study.driver_lock(run):
            pass
    assert not study.is_driven(run)


def test_a_resume_with_another_spec_is_refused(run: RunDirectory) -> None:
    opened = driver(run).study
    old = {"training": {"budget_tokens": 1e6}, "search": {"trials": 4, "seed": 0}}
    old["resources"] = {"workers": 1}
    study.claim_spec(opened, old)
    study.claim_spec(opened, {**old, "search": {"trials": 9, "seed": 0}})
    study.claim_spec(opened, {**old, "resources": {"workers": 2}})
    with pytest.raises(InputError, match=r"training.budget_tokens was 1000000.0, is 2000000.0"):
        study.claim_spec(opened, {**old, "training": {"budget_tokens": 2e6}})


def test_an_unreachable_storage_is_the_users_error(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"storage.url: cannot open"):
        study.open_storage(run, "nonsense://here")


def test_the_dashboard_opens_the_study(run: RunDirectory) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    driver(run, trials=2).run()
    app = dashboard.wsgi(study.open_storage(run, None))
    status: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x",
               "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": None,
               "wsgi.errors": sys.stderr}  # fmt: skip
    body = b"".join(app(environ, lambda s, h, e=None: status.append(s)))
    assert status == ["200 OK"]
    assert b"demo" in body
