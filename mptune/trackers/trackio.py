"""Trackio: local first, or a Hugging Face Space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from mptune.trackers.base import SEARCH, LoggedRuns, Scalar, TrackedRun


class Trackio(LoggedRuns):
    """A project of Trackio, with a run for the search and for every trial.

    Source: https://huggingface.co/docs/trackio

    Attributes:
        project: default the name of the search.
        space: Hugging Face Space that shows it, USER/NAME; default this machine (`trackio show`).
    """

    PACKAGE: ClassVar[str] = "trackio"

    kind: Literal["trackio"] = "trackio"
    project: str | None = None
    space: str | None = None

    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """One row with the state."""
        self._run(run).log({"state": state, **summary})
        if run.key != SEARCH:
            self._runs.pop(run.key).finish()

    def artifact(self, run: TrackedRun, path: Path) -> None:
        """An artifact of the search, e.g. `demo-1a2b-report.html`."""
        name = f"{self._group.id}-{path.name}"
        self._run(run).log_artifact(path, name=name, type="report", overwrite=True)

    def _run(self, run: TrackedRun) -> Any:
        import trackio

        if run.key not in self._runs:
            # It prints several lines for each run, which `--json` has no place for.
            vars(trackio)["print"] = lambda *words: None
            self._runs[run.key] = trackio.init(
                project=self.project or self._group.name,
                name=f"{self._group.id}-{run.key}",
                group=self._group.id,
                space_id=self.space,
                config={"label": run.label, **run.config},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._runs[run.key]
