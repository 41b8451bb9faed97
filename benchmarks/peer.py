"""The peer of mptune in benchmarks: Ray Tune + OptunaSearch + TorchTrainer, on the same spec.

    python benchmarks/peer.py SPEC FOLDER [--trials N]

Every trial is a TorchTrainer of its own, as its documentation recommends. Its training function is
mptune's own worker, so that both sides do the same steps and the same scoring. The trials are the
arms of the spec's search; OptunaSearch gets them as initial points, so both sides run the same
trials. `stamps.jsonl` in FOLDER records when each trial took its first step and when it ended (see
`Stamped`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.search.stage import Stage

sys.path.insert(0, str(Path(__file__).parents[1]))

from mptune.paths import RunDirectory, cache_directory
from mptune.spec.schema import SearchSpec, build
from mptune.spec.source import SpecFile
from mptune.spec.space import Space
from mptune.training.worker import Worker
from mptune.trial import (
    Control,
    Event,
    Finished,
    PrepareRequest,
    Rung,
    Started,
    StopReason,
    TrialSpec,
)


class Stamped(Worker):
    """mptune's worker. Rank 0 records when a trial takes its first step and when it ends.

    Times are seconds since the epoch. Both sides run their trials with this class.
    """

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        for event in super().run(trial, control):
            if isinstance(event, Started):
                stamp(trial, what="started")
            if isinstance(event, Finished):
                cost, score = event.result.cost, event.result.lml.nats_per_token
                stamp(trial, what="ended", training_s=cost.training_s, lml=score)
            yield event


def stamp(trial: TrialSpec, **said: Any) -> None:
    """Add a line to the file of times, which is next to the folder of all trials."""
    line = {"number": trial.number, "time": time.time(), **said}
    with (Path(trial.directory).parents[1] / "stamps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class GoesOn:
    """A control that never prunes or stops a trial."""

    def stop_requested(self) -> StopReason | None:
        return None

    def go_on(self, rung: Rung) -> bool:
        return True


def train(config: dict[str, Any]) -> None:
    """TorchTrainer's training function: one rank of one trial."""
    import ray.train

    context = ray.train.get_context()
    trial = TrialSpec.model_validate_json(config["trial"])
    worker = Stamped(context.get_world_rank(), context.get_world_size(), context.get_local_rank())
    worker.join(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    events = list(worker.run(trial, GoesOn()))
    scores = [e.result.lml.nats_per_token for e in events if isinstance(e, Finished)]
    ray.train.report({"lml": scores[0] if scores else 0.0})


class Trials:
    """Tune's trainable, which runs one TorchTrainer."""

    def __init__(self, spec: Path, folder: Path) -> None:
        self.file = SpecFile.read(spec)
        self.spec: SearchSpec = self.file.validate()
        self.run = RunDirectory(folder)
        data = build("data", self.spec.data).resolved(spec.absolute().parent)
        self.data = data.model_dump(mode="json")
        self.points = [params for _, params in Space(self.file).arms()]
        self.factory = Stage("search", self.run, "peer", self._prepared(), self.data, 0)

    def _prepared(self) -> Any:
        request = PrepareRequest(
            data=self.data, score=self.spec.score, cache=str(cache_directory() / "tables"),
            plan=str(self.run.plan.absolute()),
        )  # fmt: skip
        return Worker(0, 1).prepare(request)

    def search(self, trials: int) -> None:
        import ray
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        r, cpus = self.spec.resources, os.cpu_count() or 1
        # One logical CPU more than there are, for the trainables, which only wait: without it the
        # placement groups of the trainers would never fit.
        ray.init(
            num_cpus=cpus + 1, include_dashboard=False, logging_level="error", log_to_driver=False
        )
        tuner = tune.Tuner(
            tune.with_resources(self._trainable(), {"CPU": 0.01}),
            param_space={"policy.rate": tune.uniform(0.1, 0.6)},
            tune_config=tune.TuneConfig(
                metric="lml", mode="max", num_samples=trials,
                search_alg=OptunaSearch(seed=0, points_to_evaluate=self.points[:trials]),
                max_concurrent_trials=max(1, int(cpus / (r.workers * r.cpus_per_worker))),
            ),
            run_config=tune.RunConfig(storage_path=str(self.run.root.absolute()), verbose=0),
        )  # fmt: skip
        tuner.fit()

    def _trainable(self) -> Any:
        space, factory, r = Space(self.file), self.factory, self.spec.resources
        points = self.points
        root = self.run.root.absolute()

        def trainable(config: dict[str, Any]) -> None:
            from ray.train import RunConfig, ScalingConfig
            from ray.train.torch import TorchTrainer
            from ray.tune import get_context
            from ray.tune.integration.ray_train import TuneReportCallback

            name = get_context().get_trial_name()
            trial = factory.make(space.at(config), points.index(config), 0)
            TorchTrainer(
                train,
                train_loop_config={"trial": trial.model_dump_json()},
                scaling_config=ScalingConfig(
                    num_workers=r.workers, resources_per_worker={"CPU": r.cpus_per_worker}
                ),
                run_config=RunConfig(
                    name=name, storage_path=str(root / "train"), callbacks=[TuneReportCallback()]
                ),
            ).fit()

        return trainable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    given = parser.parse_args()
    Trials(given.spec, given.folder).search(given.trials)


if __name__ == "__main__":
    main()
