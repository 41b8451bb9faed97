"""The states of a trial between ask and tell."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from mptune.search.in_flight import InFlight
from mptune.trial import Failed, Progress, Scoring, Started
from tests import fakes


@pytest.fixture
def flight() -> InFlight:
    return InFlight(optuna.create_study().ask(), fakes.trial(0, Path("/nowhere")))


def test_a_late_report_of_an_earlier_attempt_changes_nothing(flight: InFlight) -> None:
    started = Started(number=0, gang="g", pids=(1,), total_steps=10, parameters=1)
    late = Progress(
        number=0, step=5, total_steps=10, progress=0.5, loss=1.0, mask_rate=0.5, learning_rate=0.1,
        tokens_per_s=1.0,
    )  # fmt: skip
    flight.move("submit")
    assert not flight.take(late)
    assert flight.take(started)
    assert flight.take(late)
    assert flight.progress == 0.5
    flight.move("submit")  # the gang was lost
    assert not flight.take(Scoring(number=0))
    assert (flight.state, flight.progress) == ("starting", 0.0)


def test_a_step_that_no_transition_has_is_a_mistake(flight: InFlight) -> None:
    flight.end(Failed(number=0, reason="error", detail=""))
    with pytest.raises(RuntimeError, match="end while ended"):
        flight.end(Failed(number=0, reason="error", detail=""))
