"""Who compiles: one at a time, and nobody waits for a process that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from mptune.training import baton, engine
from mptune.training.baton import Baton

HOLDER = """
import sys
from mptune.training.baton import Baton
baton = Baton(sys.argv[1])
assert baton.try_acquire()
print("holds", flush=True)
sys.stdin.read()
baton.release()
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
    thread = threading.Thread(target=Baton(str(path)).wait, daemon=True)
    thread.start()
    return thread


def test_deepspeed_compiles_with_it():
    engine.import_deepspeed()
    assert cpp_extension.FileBaton is Baton


def test_one_holds_it_and_the_others_wait_until_it_is_given_back(path):
    first, second = Baton(str(path)), Baton(str(path))
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
def test_a_killed_process_keeps_nobody_waiting(path):
    with holder(path) as process:
        assert not Baton(str(path)).try_acquire()
        thread = waiting(path)
        process.kill()
        thread.join(10)
        assert not thread.is_alive()
    with holder(path) as process:
        process.kill()
        process.wait()
        assert path.exists()
        again = Baton(str(path))
        assert again.try_acquire()
        again.release()
    assert not path.exists()


def test_a_stranger_is_waited_for(path, monkeypatch):
    """Another program that compiles the same, with torch's own."""
    monkeypatch.setattr(baton, "LOOK_EVERY_S", 0.01)
    stranger = FileBaton(str(path))
    assert stranger.try_acquire()
    ours, looked = Baton(str(path)), threading.Event()
    thread = threading.Thread(target=lambda: (looked.set(), ours.try_acquire()), daemon=True)
    thread.start()
    looked.wait()
    thread.join(0.2)
    assert thread.is_alive()
    stranger.release()
    thread.join(10)
    assert ours.fd is not None
    assert not FileBaton(str(path)).try_acquire(), "and the stranger for us"
    ours.release()


def test_what_a_stranger_left_long_ago_is_taken(path):
    path.touch()
    long_ago = time.time() - 2 * baton.FORGOTTEN_S
    os.utime(path, (long_ago, long_ago))
    ours = Baton(str(path))
    assert ours.try_acquire()
    ours.release()
    assert not path.exists()
