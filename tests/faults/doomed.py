"""`mptune` with a death to come: killed (-9) some time after a moment of its search.

python -P tests/faults/doomed.py MOMENT DELAY_S ARGUMENTS_OF_MPTUNE...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import optuna

from mptune.cli import main
from mptune.search import driver
from mptune.search.driver import StudyDriver

Die = Callable[[], None]


def die_in(delay_s: float) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


def within(owner: Any, name: str, die: Die) -> None:
    """Once the method has begun."""
    method = getattr(owner, name)

    @wraps(method)
    def doomed(*args: Any, **options: Any) -> Any:
        die()
        return method(*args, **options)

    setattr(owner, name, doomed)


def after_event(kind: str, die: Die) -> None:
    """Once the driver has heard such an event, before it does anything about it."""
    handle = StudyDriver._handle

    def doomed(driver: StudyDriver, event: Any) -> None:
        if event.type == kind:
            die()
        handle(driver, event)

    StudyDriver._handle = doomed  # type: ignore[method-assign]


def in_a_checkpoint(die: Die) -> None:
    """While a rank writes one: a tag is there that the marker does not name yet."""
    after_event("started", lambda: threading.Thread(target=_wait_for_one, args=(die,)).start())


def _wait_for_one(die: Die) -> None:
    run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    while True:
        for tag in run.glob("trials/*/checkpoint/step*"):
            marker = tag.parent / "latest.json"
            if not (marker.exists() and tag.name in marker.read_text()):
                die()
                return
        time.sleep(0.0005)


MOMENTS: dict[str, Callable[[Die], None]] = {
    "ask": partial(within, optuna.Study, "ask"),
    "tell": partial(within, optuna.Study, "tell"),
    "rung": partial(within, StudyDriver, "_decide"),
    "record": partial(within, driver, "record_result"),
    "gang": partial(after_event, "gang"),
    "started": partial(after_event, "started"),
    "scoring": partial(after_event, "scoring"),
    "finished": partial(after_event, "finished"),
    "checkpoint": in_a_checkpoint,
}

if __name__ == "__main__":
    moment, delay_s, *arguments = sys.argv[1:]
    MOMENTS[moment](partial(die_in, float(delay_s)))
    sys.exit(main(arguments))
