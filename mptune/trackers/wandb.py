"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from mptune.trackers.base import SEARCH, LoggedRuns, Scalar, TrackedRun


class WandB(LoggedRuns):
    """A group of Weights & Biases, with a run for the search and for every trial.

    Source: https://docs.wandb.ai

    Attributes:
        project: default the name of the search.
        entity: team or user; default your own.
        mode: offline writes to RUN_DIR/wandb, for `wandb sync`; default WANDB_MODE, or online.
    """

    PACKAGE: ClassVar[str] = "wandb"

    kind: Literal["wandb"] = "wandb"
    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None

    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """The summary has the state."""
        one = self._run(run)
        one.summary.update({"state": state, **summary})
        if run.key != SEARCH:
            self._runs.pop(run.key).finish(exit_code=int(state.startswith("failed")))

    def artifact(self, run: TrackedRun, path: Path) -> None:
        """An artifact of the search, e.g. `demo-1a2b-report.html`."""
        self._run(run).log_artifact(str(path), name=f"{self._group.id}-{path.name}", type="report")

    def _run(self, run: TrackedRun) -> Any:
        import wandb

        if run.key not in self._runs:
            quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True)
            made = wandb.init(
                project=self.project or self._group.name,
                entity=self.entity,
                mode=self.mode,
                group=self._group.id,
                job_type=run.key.rpartition("-")[0] or SEARCH,
                id=f"{self._group.id}-{run.key}",
                name=run.title,
                config=dict(run.config),
                dir=str(self._group.folder),
                resume="allow",
                reinit="create_new",
                settings=quiet,
            )
            made.define_metric("*", step_metric="step")
            made.define_metric("curve/*", step_metric="masked")
            self._runs[run.key] = made
        return self._runs[run.key]
