"""The private parts of Optuna that are used are as they were."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.storages._rdb import models

from mptune.paths import RunDirectory
from mptune.study.optuna_private import requeue
from tests import studies


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (models.TrialUserAttributeModel, "key"),
        (models.TrialUserAttributeModel, "value_json"),
        (models.TrialSystemAttributeModel, "value_json"),
        (models.StudySystemAttributeModel, "value_json"),
        (models.TrialModel, "find_or_raise_by_id"),
        (optuna.storages.RDBStorage, "check_trial_is_updatable"),
    ],
)
def test_optuna_still_has_the_private_name(owner: Any, name: str) -> None:
    assert hasattr(owner, name), (
        f"Optuna {optuna.__version__} has no {owner.__name__}.{name}: adapt optuna_private.py"
    )


def test_a_running_trial_can_still_be_requeued(run: RunDirectory) -> None:
    study = studies.create(run, None, "demo")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    requeue(study, trial)
    again = study.ask()
    assert (again.number, again.params) == (trial.number, trial.params), (
        f"Optuna {optuna.__version__} no longer runs a requeued trial under its number and "
        "parameters: adapt optuna_private.requeue"
    )


def test_a_database_is_opened_without_reading_optunas_migrations_again(tmp_path, monkeypatch):
    studies.storage(RunDirectory(tmp_path / "first"), None).open()
    monkeypatch.setattr(
        "alembic.script.ScriptDirectory.from_config", lambda _: pytest.fail("they are read again")
    )
    ours = studies.storage(RunDirectory(tmp_path / "second"), None).open()
    (version,) = ours.get_all_versions()[:1]
    assert ours.get_current_version() == ours.get_head_version() == version
