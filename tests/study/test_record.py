"""Studies are read whichever version wrote them."""

from __future__ import annotations

from mptune import study
from mptune.paths import RunDirectory
from mptune.study.attributes import describe
from tests import fakes
from tests.search.drivers import driver


def test_a_study_of_an_earlier_version_is_read(run: RunDirectory) -> None:
    """It had the cost flat, and the spend in two attributes."""
    opened = driver(run).study
    trial = opened.ask()
    describe(trial, fakes.trial(0, run.root, label="uniform · bert"))
    trial.set_user_attr("cost_total_s", 4.5)
    opened.tell(trial, -1.0)
    opened.set_user_attr("spent_s", 12.5)
    opened.set_user_attr("ledger", {"worker_s": 30.0, "most_worker_s": 20.0})
    assert study.records(run, None, "demo")[0].seconds == 4.5
    assert study.spent_s(run, None, "demo") == 12.5
    assert study.ledger(run, None, "demo").worker_s == 30.0


def test_no_study_has_spent_nothing(run: RunDirectory) -> None:
    assert study.spent_s(run, None, "demo") == 0.0
    assert study.ledger(run, None, "demo").worker_s == 0.0
