"""Optuna's storage, and who else opens it."""

from __future__ import annotations

import sys

import pytest

from mptune import study
from mptune.errors import InputError
from mptune.paths import RunDirectory
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
