"""What may happen to a study's storage: a server that restarts, two drivers, a journal file."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import create_engine, text

from mptune.dispatch.local import LocalDispatcher
from mptune.errors import InputError, LeaseLost, MptuneError
from mptune.paths import RunDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Search
from mptune.study import lease
from mptune.study.samplers import make_sampler
from mptune.study.storage import await_server
from mptune.trial import Event, Started, Trial, TrialSpec
from tests import fakes, studies
from tests.faults.postgres import Postgres, Relay

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


class Striker:
    def __init__(self, number: int, strike: Any) -> None:
        self.number, self.strike = number, strike

    def trial(self, number: int, label: str, size: str) -> None: ...

    def on_event(self, event: Event) -> None:
        if isinstance(event, Started) and event.number == self.number:
            self.strike()

    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


def search(
    run: RunDirectory, url: str, observer: Any, trials: int = 6, name: str = "demo", **fields: Any
) -> list[Trial]:
    opened = studies.create(run, url, name)

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = {"kind": "fake", "rate": trial.suggest_float("rate", 0.05, 0.95)}
        return fakes.trial(
            trial.number,
            run.root / "trials",
            policy=policy,
            rungs=(0.5,),
            policy_label="fake",
            size_label="tiny",
        )

    StudyDriver(
        study=opened, trials=trials, propose=propose, observer=observer, concurrency=1,
        dispatcher=LocalDispatcher(fakes.FAKE_WORKER),
        sampler=lambda number: make_sampler(Search(), number), **fields,
    ).run()  # fmt: skip
    return studies.trials(run, url, name)


def numbers(found: list[Trial]) -> list[tuple[int, str, float]]:
    return [(r.number, r.state, r.params["rate"]) for r in found]


def test_every_connection_is_cut_off_in_mid_search(server, tmp_path):
    """As a restart of the server does it."""
    undisturbed = search(RunDirectory(tmp_path / "a"), f"sqlite:///{tmp_path}/a.db", Striker(-1, 0))
    disturbed = search(RunDirectory(tmp_path / "b"), server.url, Striker(2, server.cut))
    assert numbers(disturbed) == numbers(undisturbed)
    assert {r.state for r in disturbed} == {"COMPLETE"}


@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.nightly), "immediate"])
def test_the_server_is_stopped_and_started_in_mid_search(server, tmp_path, mode):
    def restart() -> None:
        server.stop(mode)
        threading.Timer(2.0, server.start).start()

    undisturbed = search(RunDirectory(tmp_path / "a"), f"sqlite:///{tmp_path}/a.db", Striker(-1, 0))
    name = f"restarted {mode}"
    disturbed = search(RunDirectory(tmp_path / "b"), server.url, Striker(2, restart), name=name)
    assert numbers(disturbed) == numbers(undisturbed)
    assert {r.state for r in disturbed} == {"COMPLETE"}


def test_a_trial_whose_making_was_cut_off_is_asked_again(tmp_path, monkeypatch):
    """The server has made it, but its answer is lost: nothing is left to run for ever."""
    make, calls = optuna.storages.RDBStorage._create_new_trial, count()

    def cut_off(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        if next(calls) == 1:
            raise optuna.exceptions.StorageInternalError("the server closed the connection")
        return made

    undisturbed = search(RunDirectory(tmp_path / "a"), f"sqlite:///{tmp_path}/a.db", Striker(-1, 0))
    monkeypatch.setattr(optuna.storages.RDBStorage, "_create_new_trial", cut_off)
    url = f"sqlite:///{tmp_path}/b.db"
    assert numbers(search(RunDirectory(tmp_path / "b"), url, Striker(-1, 0))) == numbers(
        undisturbed
    )


HOLDER = """\
import sys, threading
from mptune.study import lease
with lease.lease(sys.argv[1], sys.argv[2], float(sys.argv[3])) as mine:
    print("held", flush=True)
    for line in sys.stdin:
        print("still" if mine.is_held() else "lost", flush=True)
"""


@contextmanager
def holder(url: str, name: str, timeout_s: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, name, str(timeout_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def is_free(url: str, name: str) -> bool:
    try:
        with lease.lease(url, name, 30):
            return True
    except InputError:
        return False


def wait_until_free(url: str, name: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not is_free(url, name):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def wait_until_older(server: Postgres, process: int, seconds: float) -> None:
    """Wait until the server has heard of this process for so long, by the server's clock."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :process "
        "AND state_change - backend_start > make_interval(secs => :seconds)"
    )
    values = {"process": f"process {process} on %", "seconds": seconds}
    engine, give_up = create_engine(server.url), time.monotonic() + PATIENCE_S
    with engine.connect() as connection:
        while not connection.execute(query, values).scalar():
            assert time.monotonic() < give_up
            connection.rollback()
            time.sleep(0.05)
    engine.dispose()


def test_a_study_in_postgresql_has_one_driver_and_a_dead_one_loses_it(server):
    with holder(server.url, "demo", 3600) as first:
        named = f"is being searched by process {first.pid} on"
        with pytest.raises(InputError, match=named), lease.lease(server.url, "demo", 30):
            pass
        assert is_free(server.url, "another")
        first.kill()
        wait_until_free(server.url, "demo")


def test_a_frozen_driver_loses_its_study_in_time_and_knows_it_when_it_thaws(server):
    with holder(server.url, "frozen", 3) as first:
        wait_until_older(server, first.pid, 4)  # it may be silent for 3 s, and is not
        assert not is_free(server.url, "frozen")
        first.send_signal(signal.SIGSTOP)
        wait_until_free(server.url, "frozen")
        with lease.lease(server.url, "frozen", 30):
            first.send_signal(signal.SIGCONT)
            out, _ = first.communicate("?\n", timeout=60)
            assert out == "lost\n"


def test_a_driver_behind_a_silent_network_loses_its_study_in_time(server, tmp_path):
    """A machine that vanished looks like this: nothing is closed, and nothing comes."""
    with Relay(server) as relay, holder(relay.url, "silent", 3) as first:
        relay.silent.set()
        wait_until_free(server.url, "silent")
        with lease.lease(server.url, "silent", 30):
            relay.silent.clear()
            out, _ = first.communicate("?\n", timeout=60)
            assert out == "lost\n"


def test_a_lease_that_was_cut_off_is_taken_again_or_lost(server, monkeypatch):
    monkeypatch.setattr(lease, "CHECK_EVERY_S", 0.2)
    with lease.lease(server.url, "mine", 30) as mine:
        server.cut()
        assert mine.is_held()
        thief = lease.PostgresLease(server.url, "mine", 30)
        stolen = threading.Event()
        give_up = time.monotonic() + 60
        while not stolen.is_set():
            assert time.monotonic() < give_up
            server.cut()
            with suppress(InputError):
                thief.take()
                stolen.set()
        while mine.is_held():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        thief.close()


def test_a_lease_whose_end_the_server_has_not_noticed_is_taken_again(server, monkeypatch):
    """A firewall between them has forgotten the connection, or a proxy was restarted."""
    monkeypatch.setattr(lease, "CHECK_EVERY_S", 0.2)
    with Relay(server) as relay, lease.lease(relay.url, "mine", 30) as mine:
        lost, give_up = mine._backend, time.monotonic() + 20
        relay.drop()
        while mine._backend == lost:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert mine.is_held()


def test_a_driver_without_its_lease_writes_nothing_any_more(tmp_path):
    class Lost:
        def is_held(self) -> bool:
            return False

    run, url = RunDirectory(tmp_path), f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(LeaseLost, match="another driver has taken study 'demo' over"):
        search(run, url, Striker(-1, 0), lease=Lost())
    assert [r.state for r in studies.trials(run, url, "demo")] == ["RUNNING"]


def test_a_journal_file_holds_a_study(tmp_path):
    url = f"journal://{tmp_path}/study.log"
    found = search(RunDirectory(tmp_path / "run"), url, Striker(-1, 0), trials=3)
    assert [r.state for r in found] == ["COMPLETE"] * 3
    again = search(RunDirectory(tmp_path / "run"), url, Striker(-1, 0), trials=4)
    assert numbers(again)[:3] == numbers(found)
    assert len(again) == 4


def test_a_driver_waits_for_a_server_that_starts_later(server: Postgres) -> None:
    said: list[str] = []
    server.stop("fast")
    starts = threading.Timer(1.5, server.start)
    starts.start()
    await_server(server.url, PATIENCE_S, said.append, threading.Event())
    starts.join()
    (line,) = said
    assert "no database server answers yet" in line
    server.psql("SELECT 1")


def test_a_server_that_never_answers_is_no_wrong_input() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    with pytest.raises(MptuneError, match="no database server answers") as raised:
        await_server(f"postgresql+psycopg2://a@127.0.0.1:{port}/b", 0, print, threading.Event())
    assert raised.value.exit_code == 3


def test_a_server_that_is_away_when_a_study_is_opened_is_no_wrong_input(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    url = f"postgresql+psycopg2://a@127.0.0.1:{port}/b"
    with pytest.raises(MptuneError, match="Connection refused") as raised:
        studies.storage(RunDirectory(tmp_path), url).open()
    assert raised.value.exit_code == 3


def test_a_storage_that_was_opened_waits_for_a_server_that_restarts(server, tmp_path):
    storage = studies.storage(RunDirectory(tmp_path), server.url)
    storage.create("search")
    storage.open()
    server.stop("fast")
    threading.Timer(1.5, server.start).start()
    study = storage.load("search")
    assert study is not None
    assert study.get_trials() == []


def test_a_server_that_refuses_is_not_waited_for(server: Postgres) -> None:
    await_server(server.url.replace(server.database, "missing"), 0, print, threading.Event())
