"""One driver at a time on a run directory, and how it is asked to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mptune.errors import InputError
from mptune.paths import RunDirectory


def this_process() -> str:
    """Who drives, in words for others."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def driver_lock(run: RunDirectory) -> Iterator[None]:
    """Hold the run directory; the kernel lets go of it when the driver dies, however it dies.

    Raises:
        InputError: another process drives this run; it is named.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with run.lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise InputError(
                f"{run.root} is being searched by {handle.read().strip() or 'another process'}; "
                "wait for it, stop it, or give another --run-dir"
            ) from None
        handle.truncate(0)
        handle.write(this_process())
        handle.flush()
        yield


def is_driven(run: RunDirectory) -> bool:
    """Whether a living driver holds the run directory."""
    if not run.lock.exists():
        return False
    with run.lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False


@contextmanager
def interrupts(asked: threading.Event) -> Iterator[None]:
    """First Ctrl-C or SIGTERM sets `asked`; a second one ends the process at once."""

    def on_signal(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
