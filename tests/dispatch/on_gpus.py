"""A driver of two searches on a cluster with GPUs, and what it asked Ray for; prints JSON.

python -m tests.dispatch.on_gpus ADDRESS FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
from ray.util import placement_group_table

from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.models import _memory as memory
from mptune.paths import RunDirectory
from mptune.spec.schema import Resources
from mptune.trial import TrialSpec
from tests import fakes
from tests.dispatch.helpers import prepare_request
from tests.search.drivers import driver, found

ON_GPU = Resources(cpus_per_worker=0.5, gpus_per_worker=1, memory_gb=40)


def gpus_ever_asked_for() -> float:
    """In all bundles of all placement groups, those that are gone included."""
    groups = placement_group_table().values()
    return sum(b.get("GPU", 0) for group in groups for b in group["bundles"].values())


def of_width(width: int, folder: Path) -> Callable[[optuna.Trial], TrialSpec]:
    model = {"family": "bert", "width": width, "depth": 48}
    policy = {"kind": "fixed", "rate": 0.15}
    fields = {
        "policy_label": "fixed",
        "size_label": "bert",
        "model": model,
        "policy": policy,
        "resources": ON_GPU,
    }
    return lambda trial: fakes.trial(trial.number, folder, **fields)


def main(address: str, folder: Path) -> None:
    dispatcher = RayDispatcher(ON_GPU, runtime=fakes.FAKE_WORKER, address=address)
    run = RunDirectory(folder / "run")
    preflight = partial(memory.refusal, holds=dispatcher.device)
    changes = {"dispatcher": dispatcher, "preflight": preflight}
    try:
        dispatcher.warm_up()
        dispatcher.prepare(prepare_request(folder))
        driver(run, trials=2, propose=of_width(8192, folder), **changes).run()
        refused = gpus_ever_asked_for()
        driver(run, trials=3, propose=of_width(64, folder), **changes).run()
        said = {
            "device": dispatcher.device(ON_GPU).model_dump(),
            "details": [record.detail for record in found(run)],
            "states": [record.state for record in found(run)],
            "gpus": [refused, gpus_ever_asked_for()],
        }
    finally:
        dispatcher.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
