"""Fixtures that several folders share, and how tests are dealt out to processes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_timeout
from sqlalchemy import Engine, event

from tests import groups

if TYPE_CHECKING:
    from tests.faults.postgres import Postgres
    from tests.warm import Warm

# Otherwise each driver's Ray starts a Python for every processor, which no test uses.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# Time depends on what else the machine does.
hypothesis.settings.register_profile("mptune", deadline=None)
hypothesis.settings.load_profile("mptune")


@event.listens_for(Engine, "connect")
def do_not_sync(connection: Any, _: object) -> None:
    """SQLite writes without waiting for the disk: no test takes the power away."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> groups.Groups:
    return groups.Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: groups.place(item.nodeid))
    if config.getoption("reruns", None):  # only for real clusters and processes
        for item in items:
            if "slow" not in item.keywords:
                item.add_marker(pytest.mark.flaky(reruns=0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test is repeated: its fixtures are made again, and it has all its time again.

    It may have left a cluster without its nodes.
    """
    if getattr(item, "execution_count", 1) > 1 and isinstance(item, pytest.Function):
        settings = pytest_timeout._get_item_settings(item)
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for definition in definitions:
                definition.finish(item._request)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Prepared data: `study(directory, workers, **changes)` is a trial on it."""
    from mptune.training.worker import Worker
    from tests.training import trials

    folder = tmp_path_factory.mktemp("study")
    asked = trials.request(folder)
    prepared = Worker(0, 1).prepare(asked)

    def make(directory, workers=1, **changes):
        return trials.trial(prepared, asked.data, directory, workers, **changes)

    return make


@pytest.fixture(scope="session")
def alone():
    """A gang of one, in this process."""
    from mptune.paths import free_port
    from mptune.training.worker import Worker
    from tests.training import trials

    worker = Worker(0, 1)
    worker.join("127.0.0.1", free_port())
    yield lambda spec, control=None: list(worker.run(spec, control or trials.Script()))
    worker.close()


@pytest.fixture(scope="session")
def pair():
    """A gang of two processes."""
    from tests.training import trials

    gang = trials.Gang(2, begin=trials.run_out_of_memory)
    yield gang.run
    gang.close()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs programs that import torch and transformers; they share a cache, and are offline."""
    from tests.warm import Warm

    cache = str(tmp_path_factory.mktemp("cache"))
    made = Warm({**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": cache, "MPTUNE_CACHE": cache})
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    from tests.faults.postgres import Postgres

    # Not in pytest's own folder: each run of pytest makes that unreadable for the server's user.
    with TemporaryDirectory(prefix="mptune-pg-", ignore_cleanup_errors=True) as folder:
        made = Postgres(Path(folder))
        yield made
        made.close()


@pytest.fixture
def server(postgres: Postgres) -> Postgres:
    """The PostgreSQL server, with a new database."""
    postgres.use_new_database()
    return postgres
