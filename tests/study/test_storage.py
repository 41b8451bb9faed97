"""Optuna's storage, and who else opens it."""

from __future__ import annotations

import sys
from itertools import count
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy import event

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.optuna_private import Database, save_note, set_attributes, user_attributes
from mptune.study.storage import StudyStorage, survive_restarts
from tests import studies
from tests.search.drivers import driver, found


def test_an_unreachable_storage_is_the_users_error(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"storage.url: cannot open"):
        studies.storage(run, "nonsense://here").open()


def test_a_file_is_opened_once_and_anew_where_another_one_replaced_it(run: RunDirectory) -> None:
    storage = studies.storage(run, None)
    storage.create("search")
    assert storage.open() is storage.open()
    before = storage.open()
    storage.database.unlink()
    assert storage.open() is not before
    assert storage.load("search") is None


def test_the_dashboard_opens_the_study(run: RunDirectory) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    driver(run, trials=2).run()
    app = dashboard.wsgi(studies.storage(run, None).open())
    status: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x",
               "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": None,
               "wsgi.errors": sys.stderr}  # fmt: skip
    body = b"".join(app(environ, lambda s, h, e=None: status.append(s)))
    assert status == ["200 OK"]
    assert b"demo" in body


@pytest.mark.parametrize("url", [None, "journal://{root}/journal"])
def test_the_dashboard_reads_notes_and_what_a_person_writes_there_stays(
    run: RunDirectory, url: str | None
) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    opened = studies.create(run, url and url.format(root=run.root), "demo")
    trial = opened.ask()
    stored = opened.trials[0]
    for text in ("long " * 1000, "*what it is*"):
        save_note(opened, stored, text)
        assert dashboard.get_note(trial) == text[:2045]
    save_note(opened, None, "of the study")
    dashboard.save_note(trial, "I like it")
    save_note(opened, stored, "what became of it")
    assert dashboard.get_note(trial) == "I like it"
    assert dashboard.get_note(opened) == "of the study"


def test_notes_follow_their_trials_into_a_copy(run: RunDirectory) -> None:
    """Whose ids are others: Optuna numbers the trials of all studies of a storage."""
    dashboard = pytest.importorskip("optuna_dashboard._note")
    others, opened = (studies.create(run, None, name) for name in ("other", "demo"))
    for study in (opened, others, opened, opened):
        study.tell(study.ask(), 1.0)
    for trial in opened.trials:
        save_note(opened, trial, f"trial {trial.number}")
    studies.storage(run).copy_to(run.root / "copy.db")
    copied = StudyStorage(run.root / "copy.db", None, "demo").load("search")
    assert copied is not None
    attrs = copied._storage.get_study_system_attrs(copied._study_id)
    shown = (dashboard.get_note_from_system_attrs(attrs, t._trial_id) for t in copied.trials)
    assert [note["body"] for note in shown] == ["trial 0", "trial 1", "trial 2"]


def test_attributes_of_a_trial_are_one_transaction(run: RunDirectory) -> None:
    opened = driver(run).study
    trial = opened.ask()
    trial.set_user_attr("retries", 1)
    commits: list[int] = []
    event.listen(opened._storage._backend.engine, "commit", lambda _: commits.append(1))
    set_attributes(trial, retries=2, learning=[3], arm=None)
    assert len(commits) == 1
    stored = {"retries": 2, "learning": [3], "arm": None}
    assert trial.user_attrs == opened.trials[0].user_attrs == stored


def test_attributes_of_a_trial_that_has_ended_are_refused(run: RunDirectory) -> None:
    opened = driver(run).study
    trial = opened.ask()
    opened.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_attributes(trial, a=2)


def test_a_journal_has_the_same_attributes(run: RunDirectory) -> None:
    opened = studies.create(run, f"journal://{run.root}/journal", "demo")
    trial = opened.ask()
    set_attributes(trial, a=2, b=[3], result="much")
    assert trial.user_attrs == opened.trials[0].user_attrs == {"a": 2, "b": [3]}
    assert user_attributes(opened, trial)["result"] == "much"


def test_a_driver_reads_what_it_needs_and_the_rest_where_it_is_asked_for(run: RunDirectory) -> None:
    """Of trials that run and of trials that have ended, in bulk and one by one."""
    opened = driver(run).study
    ended, runs = opened.ask(), opened.ask()
    for trial in (ended, runs):
        set_attributes(trial, arm="a", result="much", versions={"torch": "2"})
    set_attributes(runs, result="more")
    opened.tell(ended, 1.0)
    for trial in (*opened.trials, opened._storage.get_trial(runs._trial_id)):
        assert (trial.user_attrs, trial.system_attrs) == ({"arm": "a"}, {})
    first, second = opened.trials
    assert user_attributes(opened, first)["result"] == "much"
    assert user_attributes(opened, second) == {
        "arm": "a",
        "result": "more",
        "versions": {"torch": "2"},
    }


@pytest.mark.parametrize(
    "name",
    ["_get_trials", "_set_trial_param", "set_trial_attrs", "set_trial_state_values"],
)
def test_what_a_server_cut_off_is_repeated(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It had been done, but the answer was lost; doing it again changes nothing."""
    whole, calls = getattr(Database, name), count()

    def cut_off(*args: Any, **options: Any) -> Any:
        done = whole(*args, **options)
        if next(calls) == 1:
            raise StorageInternalError("the server closed the connection")
        return done

    monkeypatch.setattr(Database, name, cut_off)
    made = driver(run, trials=2)
    survive_restarts(made.study._storage._backend)
    made.run()
    assert [r.state for r in found(run)] == ["COMPLETE"] * 2
    assert next(calls) >= 2
