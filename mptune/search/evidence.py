"""The trials and scores of a run directory, read for its report and its decisions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune import __version__, study
from mptune.analysis.comparison import Asked
from mptune.analysis.ranking import finalists
from mptune.analysis.results import Report, build_report
from mptune.analysis.selection import recommended as recommended_trial
from mptune.analysis.selection import select_trial
from mptune.errors import InputError
from mptune.paths import RunDirectory, TrialDirectory
from mptune.search import kpi
from mptune.spec.schema import SearchSpec
from mptune.spec.source import SpecFile
from mptune.trial import Prepared, Trial

__all__ = ["Asked", "Scores", "asked", "collect", "finalists", "recommended", "stored_spec"]

PACKAGES = ("torch", "deepspeed", "ray", "optuna", "transformers", "numpy")


def stored_spec(run: RunDirectory) -> SearchSpec:
    """The spec of a run directory, every dimension at its first value.

    Raises:
        InputError: the stored copy was edited and is not valid.
    """
    concrete = next(SpecFile.read(run.resolved).probes())
    try:
        return SearchSpec.model_validate(concrete.tree)
    except ValueError as error:
        raise InputError(f"{run.resolved}: {str(error).splitlines()[0]}") from None


class Scores:
    """The stored scores of the trials of a run directory, wherever that is now."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def __call__(self, trial: Trial) -> Mapping[str, NDArray[np.float64]]:
        """`nats_per_sequence` and `at_rungs` of a trial; empty if they were not kept."""
        if trial.spec is None:
            return {}
        folder, number = Path(trial.spec.directory).parts[-2:]
        try:
            with np.load(TrialDirectory(self.run.root / folder / number).scores) as stored:
                return dict(stored)
        except FileNotFoundError:
            return {}


def collect(
    run: RunDirectory, spec: SearchSpec, command: str, extrapolate_to: Sequence[float] | None = None
) -> Report:
    """The report of a run directory.

    `extrapolate_to` replaces the spec's sizes at which laws over size are evaluated.
    """
    searched, confirmed, compared = _stages(run, spec)
    if function := spec.score.kpi:
        searched = [t.model_copy(update={"kpi": kpi.stored(run, function, t)}) for t in searched]
    return build_report(
        spec,
        prepared(run),
        searched=searched,
        confirmed=confirmed,
        compared=compared,
        asked=asked(run, spec),
        scores=Scores(run),
        extrapolate_to=extrapolate_to,
        importances=study.importances(run, spec.storage.url, spec.name),
        wall_s=sum(study.spent_s(run, spec.storage.url, name) for name in study.names(spec.name)),
        command=command,
        versions={
            "mptune": __version__,
            "python": platform.python_version(),
            **{package: _installed(package) for package in PACKAGES},
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def recommended(run: RunDirectory, spec: SearchSpec) -> Trial:
    """The trial to adopt.

    Raises:
        NoResultError: no trial has finished.
    """
    searched, confirmed, compared = _stages(run, spec)
    comparison = asked(run, spec)
    arms = comparison.arms(compared) if comparison else {}
    by_worst = spec.search.choose_by == "worst_domain"
    selection = select_trial(searched, confirmed, arms, prepared(run), Scores(run), by_worst)
    return recommended_trial(selection, searched)


def asked(run: RunDirectory, spec: SearchSpec) -> Asked | None:
    """The comparison that was run last; the spec's, if none was."""
    stored: dict[str, Any] | None = study.asked_comparison(run, spec.storage.url, spec.name)
    if stored is not None:
        return Asked.from_json(stored)
    return Asked(spec.compare, {}) if spec.compare else None


def prepared(run: RunDirectory) -> Prepared | None:
    """What preparing the data of the search gave; None before that."""
    try:
        return Prepared.model_validate_json(run.prepared.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _stages(run: RunDirectory, spec: SearchSpec) -> list[list[Trial]]:
    return [study.records(run, spec.storage.url, name) for name in study.names(spec.name)]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
