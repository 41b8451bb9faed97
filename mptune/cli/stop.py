"""Stop a running search from another terminal; the same search command goes on later."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import time

from mptune.cli import _arguments
from mptune.errors import InputError, NoResultError
from mptune.paths import RunDirectory

EXAMPLES = """\
examples:
  mptune stop runs/quickstart          # running trials write a checkpoint first
  mptune stop runs/quickstart --now    # they go on from their last checkpoint
"""

PATIENCE_S = 180.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--now", action="store_true", help="do not wait for checkpoints")


def run(arguments: argparse.Namespace) -> int:
    from mptune import study

    found = _arguments.existing_run(arguments.run_dir)
    if not study.is_driven(found):
        print(f"{found.root}: not running")
        return 0
    pid = _driver_here(found)
    os.kill(pid, signal.SIGTERM)
    if arguments.now:
        # The driver takes any second signal as "at once"; two of one kind may arrive as one.
        os.kill(pid, signal.SIGINT)
    give_up = time.monotonic() + PATIENCE_S
    while study.is_driven(found):
        if time.monotonic() > give_up:
            raise NoResultError(f"process {pid} did not stop in {PATIENCE_S:.0f} s; try --now")
        time.sleep(0.2)
    print(f"{found.root}: stopped; the same search command goes on")
    return 0


def _driver_here(found: RunDirectory) -> int:
    """The driver's process id.

    Raises:
        InputError: it runs on another machine.
    """
    said = found.lock.read_text(encoding="utf-8")
    match = re.match(r"process (\d+) on (\S+)", said)
    if match is None:
        raise InputError(f"{found.lock}: does not say who drives the search")
    if match[2] != socket.gethostname():
        raise InputError(f"{found.root} is being searched by {said}; stop it there")
    return int(match[1])
