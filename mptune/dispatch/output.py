"""What a rank prints while it runs a trial, kept in the trial's directory."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STANDARD = (1, 2)
"""File descriptors of output and errors: what C libraries print goes there too."""


@contextmanager
def kept(log: Path, rank: int) -> Iterator[None]:
    """Meanwhile, this process prints to the end of `log`; a second attempt follows the first.

    A trial does not fail because its output cannot be kept: without room it goes where it went.
    """
    try:
        file = _opened(log, rank)
    except OSError:
        yield
        return
    before = [os.dup(standard) for standard in STANDARD]
    _redirect([file, file])
    try:
        yield
    finally:
        _redirect(before)
        for descriptor in (file, *before):
            os.close(descriptor)


def _opened(log: Path, rank: int) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    now, host = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname()
    try:
        os.write(file, f"--- rank {rank}, process {os.getpid()} on {host}, {now}\n".encode())
    except OSError:
        os.close(file)
        raise
    return file


def _redirect(to: list[int]) -> None:
    """What was printed before must not come out after it, in the wrong file."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no room for it
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    for descriptor, standard in zip(to, STANDARD, strict=True):
        os.dup2(descriptor, standard)
