"""The lock under which torch compiles: one process at a time, and none waits for a dead one."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from mptune.training import engine, torch_private
from mptune.training.torch_private import CompileLock

HOLDER = """
import sys
from mptune.training.torch_private import CompileLock
lock = CompileLock(sys.argv[1])
assert lock.try_acquire()
print("holds", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def waiting(path: Path) -> threading.Thread:
    thread = threading.Thread(target=CompileLock(str(path)).wait, daemon=True)
    thread.start()
    return thread


def test_torch_still_compiles_under_a_file_baton_as_it_is_replaced_here():
    """The contract with torch."""
    engine.import_deepspeed()
    assert cpp_extension.FileBaton is CompileLock
    changed = f"torch {torch.__version__} has changed its compile lock; adapt torch_private.py: "
    compiles = inspect.getsource(cpp_extension._jit_compile)
    assert "FileBaton(" in compiles, f"{changed}cpp_extension does not use FileBaton"
    for call in ("baton.try_acquire()", "baton.wait()", "baton.release()"):
        assert call in compiles, f"{changed}cpp_extension does not call {call}"
    first = list(inspect.signature(FileBaton.__init__).parameters)[1]
    assert first == "lock_file_path", f"{changed}FileBaton takes {first} first"
    assert "self.fd" in inspect.getsource(FileBaton), f"{changed}FileBaton has no fd"


def test_one_holds_it_and_the_others_wait_until_it_is_given_back(path):
    first, second = CompileLock(str(path)), CompileLock(str(path))
    assert first.try_acquire()
    assert not second.try_acquire()
    thread = waiting(path)
    first.release()
    thread.join(10)
    assert not thread.is_alive()
    assert not path.exists()
    assert second.try_acquire()
    second.release()


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_taken_over(path):
    with holder(path) as process:
        assert not CompileLock(str(path)).try_acquire()
        thread = waiting(path)
        process.kill()
        thread.join(10)
        assert not thread.is_alive()
    with holder(path) as process:
        process.kill()
        process.wait()
        assert path.exists()
        again = CompileLock(str(path))
        assert again.try_acquire()
        again.release()
    assert not path.exists()


def test_a_program_with_torch_s_own_lock_is_waited_for(path, monkeypatch):
    monkeypatch.setattr(torch_private, "POLL_S", 0.01)
    other = FileBaton(str(path))
    assert other.try_acquire()
    ours, looked = CompileLock(str(path)), threading.Event()
    thread = threading.Thread(target=lambda: (looked.set(), ours.try_acquire()), daemon=True)
    thread.start()
    looked.wait()
    thread.join(0.2)
    assert thread.is_alive()
    other.release()
    thread.join(10)
    assert ours.fd is not None
    assert not FileBaton(str(path)).try_acquire(), "and it waits for us"
    ours.release()


def test_a_lock_file_that_torch_left_long_ago_is_taken_over(path):
    path.touch()
    long_ago = time.time() - 2 * torch_private.ABANDONED_S
    os.utime(path, (long_ago, long_ago))
    ours = CompileLock(str(path))
    assert ours.try_acquire()
    ours.release()
    assert not path.exists()


def test_where_files_cannot_be_locked_it_works_as_torch_s_own(path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ours, theirs = CompileLock(str(path)), CompileLock(str(path))
    assert ours.try_acquire()
    assert not theirs.try_acquire()
    ours.release()
    assert not path.exists()
    assert theirs.try_acquire()
    theirs.release()
