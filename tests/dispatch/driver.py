"""A driver to be killed: runs one long trial on a Ray of its own; a signal stops the trial.

    python -m tests.dispatch.driver <directory> <behaviour>

Prints every event as a line of JSON.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from mptune.dispatch.base import End
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.spec.schema import Resources
from tests import fakes

SHAPE = Resources(workers=2, cpus_per_worker=0.5)


def main(directory: Path, behaviour: str) -> None:
    interrupts: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _: interrupts.append(caught))
    dispatcher = RayDispatcher(SHAPE, runtime=fakes.FAKE_WORKER)
    policy = {"behaviour": behaviour, "at": 0.2, "steps": 1000, "step_s": 0.05}
    dispatcher.submit(fakes.trial(0, directory, policy=policy, resources=SHAPE, rungs=(0.01,)))
    ended = False
    while not ended:
        for event in dispatcher.events(1.0):
            print(event.model_dump_json(), flush=True)
            ended = ended or isinstance(event, End)
        if interrupts:
            interrupts.clear()
            dispatcher.stop(0, "interrupted")
    dispatcher.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
