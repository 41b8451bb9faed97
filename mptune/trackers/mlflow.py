"""MLflow: a server, or a database of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, PrivateAttr

from mptune.artifacts import without_secret
from mptune.trackers.base import SEARCH, Axis, Group, Scalar, TrackedRun, Tracker

GROUP, KEY, PARENT = "mptune_search", "mptune_run", "mlflow.parentRunId"
MOST_RUNS = 50_000
"""What MLflow's search of runs returns at most."""

LONGEST = 500
"""Characters of a parameter that every store takes."""


class MLflow(Tracker):
    """An experiment of MLflow: a run for the search, with a child for every trial.

    Source: https://mlflow.org, `MlflowClient`

    Attributes:
        uri: http://HOST:PORT of a server, or sqlite:////path/of/a/file; default
            MLFLOW_TRACKING_URI. Names and tokens are given in the environment, as MLflow reads
            them (MLFLOW_TRACKING_USERNAME, ...).
        experiment: default the name of the search.
    """

    PACKAGE: ClassVar[str] = "mlflow"

    kind: Literal["mlflow"] = "mlflow"
    uri: Annotated[str, AfterValidator(without_secret)] | None = None
    experiment: str | None = None
    _client: Any = PrivateAttr()
    _experiment: str = PrivateAttr()
    _group: Group = PrivateAttr()
    _ids: dict[str, str] = PrivateAttr(default_factory=dict)

    def start(self, group: Group) -> None:
        """Find the experiment, and the search's runs of earlier drivers."""
        from mlflow import MlflowClient

        client, name = MlflowClient(self.uri), self.experiment or group.name
        found = client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else client.create_experiment(name)
        runs = client.search_runs(
            [self._experiment], f"tags.`{GROUP}` = '{group.id}'", max_results=MOST_RUNS
        )
        self._ids.update({run.data.tags[KEY]: run.info.run_id for run in runs})
        self._client, self._group = client, group

    def trial(self, run: TrackedRun) -> None:
        """The run is a child of the search's."""
        self._client.update_run(self._id(run), "RUNNING")

    def event(self, run: TrackedRun, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """One request for all values; numbers of masked positions take the place of steps."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_metric(k), float(v), now, at) for k, v in values.items()]
        self._client.log_batch(self._id(run), metrics)

    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """Numbers are metrics, text is tags."""
        self.event(run, "step", 0, {k: v for k, v in summary.items() if not isinstance(v, str)})
        words = {k: v for k, v in summary.items() if isinstance(v, str)}
        for name, text in {"state": state, **words}.items():
            self._client.set_tag(self._id(run), name, text)
        waits = state in ("paused", "interrupted")
        status = "FAILED" if state.startswith("failed") else "SCHEDULED" if waits else "FINISHED"
        if waits:
            self._client.update_run(self._id(run), status)
        else:
            self._client.set_terminated(self._id(run), status)

    def artifact(self, run: TrackedRun, path: Path) -> None:
        """In the run's folder of artifacts."""
        self._client.log_artifact(self._id(run), str(path))

    def end(self) -> None:
        """Every call has sent what it was given."""

    def _id(self, run: TrackedRun) -> str:
        if run.key not in self._ids:
            from mlflow.entities import Param

            tags = {GROUP: self._group.id, KEY: run.key}
            if run.key != SEARCH:
                tags[PARENT] = self._id(TrackedRun(SEARCH, self._group.name))
            made = self._client.create_run(self._experiment, run_name=run.title, tags=tags)
            self._ids[run.key] = made.info.run_id
            parameters = [Param(_metric(k), str(v)[:LONGEST]) for k, v in run.config.items()]
            self._client.log_batch(made.info.run_id, params=parameters)
        return self._ids[run.key]


def _metric(name: str) -> str:
    """The name with characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "-" for c in name)
