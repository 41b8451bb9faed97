"""The studies of a run directory, for tests: opened, read and driven without a spec."""

from __future__ import annotations

import optuna

from mptune.paths import RunDirectory
from mptune.search.ledger import Work, load_spend
from mptune.study.storage import SUFFIXES, StudyStorage
from mptune.trial import StageName, Trial


def _place(run: RunDirectory, url: str | None, name: str) -> tuple[StudyStorage, StageName]:
    for stage, suffix in reversed(SUFFIXES.items()):
        if name.endswith(suffix):
            return StudyStorage(run.database, url, name.removesuffix(suffix)), stage
    raise AssertionError


def storage(run: RunDirectory, url: str | None = None, name: str = "demo") -> StudyStorage:
    """The studies of a run of this name."""
    return StudyStorage(run.database, url, name)


def create(
    run: RunDirectory,
    url: str | None,
    name: str,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """The study of this name, `demo/compare` for one of a comparison, to be driven."""
    studies, stage = _place(run, url, name)
    study = studies.create(stage)
    study.pruner = pruner or study.pruner
    return study


def trials(run: RunDirectory, url: str | None, name: str) -> list[Trial]:
    """Every trial of the study of this name."""
    studies, stage = _place(run, url, name)
    return studies.trials(stage)


def ledger(run: RunDirectory, url: str | None, name: str) -> Work:
    """What the trials of the study have used."""
    studies, stage = _place(run, url, name)
    found = studies.load(stage)
    return load_spend(found)[1].ended if found else Work()
