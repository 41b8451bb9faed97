"""A driver that keeps a cluster busy as it grows and shrinks: `python -m ... ADDRESS DIRECTORY
[SCALE_UP_TIMEOUT_S [MARK]]`.

Like a search it keeps as many trials in flight as the dispatcher has room for. Says every second
capacity, pids of running trials and reasons of failures and stops, as JSON; ends with its standard
input.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from mptune.dispatch.base import End
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.spec.schema import Resources
from mptune.trial import Failed, Started, Stopped
from tests import fakes


def main(address: str, directory: str, scale_up_timeout_s: str = "0", mark: str = "mptune") -> None:
    shape = Resources(cpus_per_worker=1, scale_up_timeout_s=float(scale_up_timeout_s))
    dispatcher = RayDispatcher(shape, runtime=fakes.FAKE_WORKER, address=address, mark=mark)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    flying: dict[int, tuple[int, ...]] = {}
    failed: list[str] = []
    stopped: list[str] = []
    number = 0
    while not ended.is_set():
        capacity = dispatcher.capacity([shape] * len(flying))
        while len(flying) < capacity:
            policy = {"steps": 10**6, "step_s": 0.05}
            dispatcher.submit(fakes.trial(number, Path(directory), policy=policy, resources=shape))
            flying[number] = ()
            number += 1
        for event in dispatcher.events(0.5):
            if isinstance(event, Started):
                flying[event.number] = event.pids
            if isinstance(event, Failed):
                failed.append(event.reason)
            if isinstance(event, Stopped):
                stopped.append(event.reason)
            if isinstance(event, End):
                del flying[event.number]
        running = [pid for pids in flying.values() for pid in pids]
        said = {"capacity": capacity, "running": running, "failed": failed, "stopped": stopped}
        print(json.dumps(said), flush=True)
    dispatcher.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
