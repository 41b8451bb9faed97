"""A driver whose workers are fake, who watches it, and what it leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import optuna

from mptune.dispatch.local import LocalDispatcher
from mptune.paths import RunDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Pruner, Sampler, Search
from mptune.study.pruners import make_pruner
from mptune.study.samplers import exposure_sampler, make_sampler
from mptune.trial import Event, Trial, TrialSpec
from tests import fakes, studies

clock: Callable[[], float] = time.monotonic
"""Of the drivers made here; tests of budgets put a `VirtualClock` in its place."""


class LastFirst(LocalDispatcher):
    """Runs the trial that was submitted last first."""

    def submit(self, trial: TrialSpec) -> None:
        super().submit(trial)
        self._queue.rotate(1)


KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from mptune.paths import RunDirectory
from tests.search.drivers import Watcher

class Dying(Watcher):
    at = int(sys.argv[4])

    def happen(self, what):
        Dying.at -= what == sys.argv[3]
        if Dying.at == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish_trial(self, number, state):
        self.happen(state)

    def on_event(self, event):
        self.happen(event.type)
        if event.type == "started" and event.resumed_at:
            self.happen("resumed")

module = importlib.import_module(sys.argv[1])
module.search(RunDirectory(Path(sys.argv[2])), observer=Dying(), **module.KILLED_WITH).run()
"""


def kill(run: RunDirectory, module: str, at: str) -> None:
    """Runs the module's `search` with its `KILLED_WITH`; kill -9 at an event or state, "NAME N"."""
    command = [sys.executable, "-c", KILLED, module, str(run.root), *at.split()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


class VirtualClock:
    """Seconds that pass only while a fake worker trains."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


SEARCH = Search(trials=8, seed=3, sampler=Sampler(startup_trials=2))


class Watcher:
    """An observer that keeps what it saw."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.events: list[Event] = []
        self.held: list[tuple[int, str]] = []

    def trial(self, number: int, label: str, size: str) -> None:
        self.states[number] = "asked"

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def hold_trial(self, number: int, why: str) -> None:
        self.held.append((number, why))

    def finish_trial(self, number: int, state: str) -> None:
        self.states[number] = state


def define(trial: Any) -> dict[str, Any]:
    """The space of the drivers made here, as the exposure sampler sees it."""
    rate = trial.suggest_float("rate", 0.05, 0.95, step=None, log=False)
    return {"policy": {"kind": "fixed", "rate": rate}}


def driver(
    run: RunDirectory, *, trials: int = 8, behaviours: dict[int, dict[str, Any]] | None = None,
    rungs: tuple[float, ...] = (0.5,), pruner: Pruner | None = None, error: float = 0.05,
    sampler: Any = "tpe", **changes: Any,
) -> StudyDriver:  # fmt: skip
    """A driver; `behaviours` are parameters of a trial's fake policy, by its number."""
    settings = Sampler(kind=sampler, startup_trials=4)
    search = Search(pruner=pruner or Pruner(kind="none"), error=error, sampler=settings)
    exposure = exposure_sampler(search, define, 32.0)
    opened = studies.create(run, None, "demo", pruner=make_pruner(search, 32.0, exposure))
    known = behaviours or {}

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = {"kind": "fake", "rate": trial.suggest_float("rate", 0.05, 0.95)}
        policy |= known.get(trial.number, {})
        return fakes.trial(
            trial.number, run.root / "trials", policy=policy, rungs=rungs,
            policy_label=f"fake {policy['rate']:.3f}", size_label="tiny",
        )  # fmt: skip

    defaults: dict[str, Any] = {
        "dispatcher": LocalDispatcher(fakes.FAKE_WORKER),
        "observer": Watcher(),
        "sampler": lambda number: exposure or make_sampler(SEARCH, number),
        "concurrency": 1,
        "propose": propose,
        "clock": lambda: clock(),
    }
    return StudyDriver(study=opened, trials=trials, **{**defaults, **changes})


def found(run: RunDirectory) -> list[Trial]:
    return studies.trials(run, None, "demo")


def ranking(run: RunDirectory) -> list[tuple[int, dict[str, Any], float | None]]:
    return [(r.number, dict(r.params), r.result and r.result.lml.nats_per_token)
            for r in found(run)]  # fmt: skip
