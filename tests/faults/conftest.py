"""A study with real gangs of two DeepSpeed ranks on one shared Ray, and a place to strike at."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.paths import RunDirectory, TrialDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Resources, Score, Search, Training
from mptune.study.samplers import make_sampler
from mptune.trial import Event, Finished, Prepared, Started, Trial, TrialSpec
from tests import plain, studies
from tests.dispatch.helpers import prepare_request
from tests.training.trials import data_section

PAIR = Resources(workers=2, cpus_per_worker=0.5)
LENGTH = 16
SCORE = Score(sequences=40, forwards=2, batch_size=16)
STEPS = 24

Strike = Callable[[Event, "Search_"], None]


@dataclass
class Search_:  # noqa: N801
    """What a search of one trial showed."""

    run: RunDirectory
    events: list[Event] = field(default_factory=list)
    pids: tuple[int, ...] = ()

    @property
    def record(self) -> Trial:
        (found,) = studies.trials(self.run, None, "faults")
        return found

    @property
    def attrs(self) -> dict[str, Any]:
        storage = studies.storage(self.run, None).open()
        return optuna.load_study(study_name="faults", storage=storage).trials[0].user_attrs

    @property
    def files(self) -> TrialDirectory:
        return self.run.trial(0)

    @property
    def started(self) -> list[Started]:
        return [e for e in self.events if isinstance(e, Started)]

    def ends(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


@dataclass
class Observer:
    """Keeps the events, and strikes."""

    search: Search_
    strike: Strike

    def trial(self, number: int, label: str, size: str) -> None: ...

    def on_event(self, event: Event) -> None:
        self.search.events.append(event)
        if isinstance(event, Started):
            self.search.pids = event.pids
        self.strike(event, self.search)

    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


def nothing(event: Event, search: Search_) -> None: ...


@dataclass(frozen=True)
class Ground:
    """Prepared data and a dispatcher: `search` runs one trial and strikes at it.

    While the file `pause` exists, a trial lasts long enough to be struck, see `plain.PAUSE`.
    """

    dispatcher: RayDispatcher
    prepared: Prepared
    data: dict[str, Any]
    pause: Path

    def spec(self, run: RunDirectory, number: int, **changes: Any) -> TrialSpec:
        training = {"budget_tokens": STEPS * 8 * LENGTH, "batch_size": 8,
                    **changes.pop("training", {})}  # fmt: skip
        fields: dict[str, Any] = {
            "study": "search", "policy_label": "uniform", "size_label": "tiny",
                "seed": 7, "data": self.data,
            "model": {"family": "plain", "width": 16, "depth": 1},
            "policy": {"kind": "uniform"}, "score": SCORE, "resources": PAIR, **changes,
        }  # fmt: skip
        directory = str(run.trial(number).root.absolute())
        return TrialSpec(
            **fields, training=Training(**training), prepared=self.prepared, number=number,
            directory=directory,
        )  # fmt: skip

    def search(self, folder: Path, strike: Strike = nothing, **changes: Any) -> Search_:
        run = RunDirectory(folder)
        found = Search_(run)
        opened = studies.create(run, None, "faults")
        StudyDriver(
            study=opened, trials=1, propose=lambda t: self.spec(run, t.number, **changes),
            dispatcher=self.dispatcher, observer=Observer(found, strike),
            sampler=lambda number: make_sampler(Search(), number), concurrency=1,
        ).run()  # fmt: skip
        return found


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("ground")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{plain.install(folder)}{os.pathsep}{plain.ROOT}")
        patch.setenv(plain.PAUSE, str(folder / "pause"))
        dispatcher = RayDispatcher(PAIR)
    try:
        request = prepare_request(folder, data=data_section(folder), score=SCORE)
        prepared = dispatcher.prepare(request)
        yield Ground(dispatcher, prepared, request.data, folder / "pause")
    finally:
        dispatcher.close()


@pytest.fixture(scope="module")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The result that every survivor must repeat to the last digit."""
    search = ground.search(tmp_path_factory.mktemp("undisturbed"))
    (end,) = search.ends(Finished)
    return end


def once(strike: Callable[[Event, Search_], bool]) -> Strike:
    """Strike until it hit."""
    hit = threading.Event()

    def on_event(event: Event, search: Search_) -> None:
        if not hit.is_set() and strike(event, search):
            hit.set()

    return on_event


def members() -> set[int]:
    """Every process of a gang that this one, by its Ray, has started and that still runs."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith("ray::Member"):
                found.add(process.pid)
    return found


def pids(dispatcher: RayDispatcher) -> set[int]:
    """The processes of the present gangs."""
    return {pid for gang in dispatcher._pool.gangs.values() for pid in gang.pids}


def orphans(dispatcher: RayDispatcher, seconds: float = 60) -> set[int]:
    """Processes of gangs that are no more, given a moment."""
    give_up = time.monotonic() + seconds
    while left := members() - pids(dispatcher):
        if time.monotonic() > give_up:
            break
        time.sleep(0.1)
    return left


def gone(pids: tuple[int, ...]) -> bool:
    """Whether none of these processes runs any more, given a moment."""
    processes = [psutil.Process(p) for p in pids if psutil.pid_exists(p)]
    return not psutil.wait_procs(processes, timeout=60)[1]
