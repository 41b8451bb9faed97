"""A trial between `study.ask` and `study.tell`: its states and their transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from mptune.trial import Event, Failed, Finished, Progress, Scoring, Started, Stopped, TrialSpec

if TYPE_CHECKING:
    import optuna


class InFlightState(StrEnum):
    """Where a trial is between `ask` and `tell`."""

    HELD = "held"
    """The budgets have no room for it."""
    STARTING = "starting"
    """Submitted; it waits for a gang, or sets up."""
    TRAINING = "training"
    SCORING = "scoring"
    ENDED = "ended"
    """Its outcome is known, but not yet stored in the study."""


HELD, STARTING, TRAINING, SCORING, ENDED = InFlightState

TRANSITIONS: Mapping[str, Mapping[InFlightState, InFlightState]] = {
    "submit": {HELD: STARTING, TRAINING: STARTING, SCORING: STARTING, STARTING: STARTING},
    "started": {STARTING: TRAINING, TRAINING: TRAINING, SCORING: TRAINING},
    "progress": {TRAINING: TRAINING},
    "scoring": {TRAINING: SCORING, SCORING: SCORING},
    "end": {HELD: ENDED, STARTING: ENDED, TRAINING: ENDED, SCORING: ENDED},
    "hold": {STARTING: HELD, ENDED: HELD},
}
"""What happens -> state before -> state after; anything else is a mistake of the driver.

`submit` out of training or scoring is a retry. `end` out of a hold is a result that an earlier
driver left; `hold` after the end is a trial that was stopped for the budget.
"""


@dataclass
class InFlight:
    """A trial between `study.ask` and `study.tell`.

    Attributes:
        retries: times that it was run again because its machine failed.
        progress: of training, 0 to 1.
        loss: last training loss, nats per masked position.
        ending: its outcome, once it has ended.
        stop_requested: whether it was asked to stop.
        held_because: why the budgets have no room for it.
    """

    trial: optuna.Trial
    spec: TrialSpec
    retries: int = 0
    state: InFlightState = HELD
    progress: float = 0.0
    loss: float | None = None
    tokens_per_s: float | None = None
    ending: Finished | Stopped | Failed | None = None
    stop_requested: bool = False
    held_because: str | None = None

    def move(self, what: str) -> None:
        """Go to the state that follows `what`.

        Raises:
            RuntimeError: `TRANSITIONS` has none.
        """
        after = TRANSITIONS[what].get(self.state)
        if after is None:
            raise RuntimeError(f"trial {self.spec.number}: {what} while {self.state}")
        self.state = after
        if what == "submit":
            self.progress, self.loss, self.tokens_per_s = 0.0, None, None

    def take(self, event: Event) -> None:
        """Follow what its worker reports."""
        match event:
            case Started():
                self.move("started")
                self.loss, self.tokens_per_s = None, None
                self.progress = event.resumed_at / max(1, event.total_steps)
            case Progress():
                self.move("progress")
                self.progress, self.loss = event.progress, event.loss
                self.tokens_per_s = event.tokens_per_s
            case Scoring():
                self.move("scoring")
                self.progress = 1.0

    def end(self, ending: Finished | Stopped | Failed) -> None:
        """Its outcome is known."""
        self.move("end")
        self.ending = ending

    def hold(self, why: str) -> None:
        """The budgets have no room for it now."""
        self.move("hold")
        self.ending, self.stop_requested, self.held_because = None, False, why
