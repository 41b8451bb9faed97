"""A search on a Ray of its own whose metrics are scraped meanwhile.

    python -m tests.dispatch.scraped <directory>

Prints whether Ray asks for a token, and the address of its metrics. Reads a line of standard input
before it ends; has pretend trials of two gang sizes, of which one dies at its first attempt.
"""

from __future__ import annotations

import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import optuna
from ray._raylet import AuthenticationMode, get_authentication_mode

from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.errors import InterruptedSearch
from mptune.paths import RunDirectory
from mptune.search.budget import Budget
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Resources, Search
from mptune.study.samplers import make_sampler
from mptune.trial import TrialSpec
from tests import fakes, studies
from tests.search.drivers import Watcher

SMALL, WIDE = Resources(cpus_per_worker=0.5), Resources(workers=2, cpus_per_worker=0.5)
POLICIES = {0: {"steps": 2}, 1: {"steps": 2, "behaviour": "exit", "once": True}}
"""What is no quick trial goes on until the search is stopped."""


def main(run: RunDirectory) -> None:
    dispatcher = RayDispatcher(SMALL, runtime=fakes.FAKE_WORKER)
    opened = studies.create(run, None, "demo")

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = POLICIES.get(trial.number, {"steps": 100_000, "step_s": 0.05})
        return fakes.trial(
            trial.number, run.root / "trials", policy=policy,
            resources=WIDE if trial.number == 3 else SMALL,
        )  # fmt: skip

    driver = StudyDriver(
        study=opened, trials=5, propose=propose, dispatcher=dispatcher, observer=Watcher(),
        sampler=lambda number: make_sampler(Search(), number), concurrency=3,
        ordered=False, watchers=(dispatcher.publish,),
        budget=Budget(worker_s=1e6, gpu_hours=1e6, wall_s=1e6),
    )  # fmt: skip
    with_token = get_authentication_mode() == AuthenticationMode.TOKEN
    print("token" if with_token else "open", dispatcher.state().metrics, flush=True)
    threading.Thread(
        target=lambda: (sys.stdin.readline(), driver.interrupted.set()), daemon=True
    ).start()
    with closing(dispatcher), suppress(InterruptedSearch):
        driver.run()


if __name__ == "__main__":
    main(RunDirectory(Path(sys.argv[1])))
