"""Optuna's storage, and who else opens it."""

from __future__ import annotations

import sys

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy import event

from mptune import study
from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.attributes import set_attributes
from tests.study.drivers import driver


def test_an_unreachable_storage_is_the_users_error(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"storage.url: cannot open"):
        study.open_storage(run, "nonsense://here")


def test_the_dashboard_opens_the_study(run: RunDirectory) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    driver(run, trials=2).run()
    app = dashboard.wsgi(study.open_storage(run, None))
    status: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x",
               "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": None,
               "wsgi.errors": sys.stderr}  # fmt: skip
    body = b"".join(app(environ, lambda s, h, e=None: status.append(s)))
    assert status == ["200 OK"]
    assert b"demo" in body


def test_attributes_of_a_trial_are_one_transaction(run: RunDirectory) -> None:
    opened = driver(run).study
    trial = opened.ask()
    trial.set_user_attr("a", 1)
    commits: list[int] = []
    event.listen(opened._storage._backend.engine, "commit", lambda _: commits.append(1))
    set_attributes(trial, a=2, b=[3], c=None)
    assert len(commits) == 1
    assert trial.user_attrs == opened.trials[0].user_attrs == {"a": 2, "b": [3], "c": None}


def test_attributes_of_a_trial_that_has_ended_are_refused(run: RunDirectory) -> None:
    opened = driver(run).study
    trial = opened.ask()
    opened.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_attributes(trial, a=2)


def test_a_journal_has_the_same_attributes(run: RunDirectory) -> None:
    opened = study.open_study(
        run, f"journal://{run.root}/journal", "demo", pruner=optuna.pruners.NopPruner()
    )
    trial = opened.ask()
    set_attributes(trial, a=2, b=[3])
    assert trial.user_attrs == opened.trials[0].user_attrs == {"a": 2, "b": [3]}
