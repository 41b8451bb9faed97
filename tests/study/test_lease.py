"""One driver at a time."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.lease import driver_lock, is_driven


def test_a_second_driver_is_refused_and_names_the_first(run: RunDirectory) -> None:
    with driver_lock(run):
        assert is_driven(run)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), driver_lock(run):
            pass
    assert not is_driven(run)


def test_readers_do_not_see_each_other(run: RunDirectory) -> None:
    with driver_lock(run):
        pass
    with ThreadPoolExecutor(4) as readers:
        assert not any(readers.map(lambda _: is_driven(run), range(400)))


def test_a_lock_that_can_only_be_read_is_probed(run: RunDirectory) -> None:
    with driver_lock(run):
        run.lock.chmod(0o444)
        assert is_driven(run)
    assert not is_driven(run)


def test_a_file_system_without_locks_is_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(InputError, match="cannot be locked"), driver_lock(run):
        pass
