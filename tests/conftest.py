"""Fixtures that several folders share: prepared data, and gangs of real workers."""

from __future__ import annotations

import pytest

from mptune.paths import free_port
from mptune.training.worker import Worker
from tests.training import trials


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Prepared data: `study(directory, workers, **changes)` is a trial on it."""
    folder = tmp_path_factory.mktemp("study")
    asked = trials.request(folder)
    prepared = Worker(0, 1).prepare(asked)

    def make(directory, workers=1, **changes):
        return trials.trial(prepared, asked.data, directory, workers, **changes)

    return make


@pytest.fixture(scope="session")
def alone():
    """A gang of one, in this process."""
    worker = Worker(0, 1)
    worker.join("127.0.0.1", free_port())
    yield lambda spec, control=None: list(worker.run(spec, control or trials.Script()))
    worker.close()


@pytest.fixture(scope="session")
def pair():
    """A gang of two processes."""
    gang = trials.Gang(2)
    yield gang.run
    gang.close()
