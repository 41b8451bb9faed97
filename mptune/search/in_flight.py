"""A trial between `study.ask` and `study.tell`: its states and their transitions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from mptune.paths import TrialDirectory, read_json, read_model, read_text, write_aside, write_text
from mptune.trial import (
    Event,
    Failed,
    Finished,
    Progress,
    Scoring,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

if TYPE_CHECKING:
    import optuna


class InFlightState(StrEnum):
    """Where a trial is between `ask` and `tell`."""

    HELD = "held"
    """The budgets have no room for it, or it is paused."""
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


REPORTS: Mapping[type, str] = {Started: "started", Progress: "progress", Scoring: "scoring"}
"""Reports of a worker that change the state."""


@dataclass
class InFlight:
    """A trial between `study.ask` and `study.tell`.

    Attributes:
        retries: times that it was run again because its machine failed.
        progress: of training, 0 to 1.
        loss: last training loss, nats per masked position.
        ending: its outcome, once it has ended.
        stop_requested: whether it was asked to stop.
        held_because: why the budgets have no room for it, or why it is paused.
        paused: whether the pruner has paused it.
        place: in the order of launching, that of an earlier driver included.
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
    paused: bool = False
    place: int = 0

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

    def take(self, event: Event) -> bool:
        """Follow what its worker reports; False for a late report of an earlier attempt."""
        what = REPORTS.get(type(event))
        if what is not None and self.state not in TRANSITIONS[what]:
            return False
        match event:
            case Started():
                self.loss, self.tokens_per_s = None, None
                self.progress = event.resumed_at / max(1, event.total_steps)
            case Progress():
                self.progress, self.loss = event.progress, event.loss
                self.tokens_per_s = event.tokens_per_s
            case Scoring():
                self.progress = 1.0
        if what is not None:
            self.move(what)
        return True

    def end(self, ending: Finished | Stopped | Failed) -> None:
        """Its outcome is known."""
        self.move("end")
        self.ending = ending

    def hold(self, why: str) -> None:
        """The budgets have no room for it now, or it is paused."""
        self.move("hold")
        self.ending, self.stop_requested, self.held_because = None, False, why


# --- what earlier drivers left ---


def finished_before(spec: TrialSpec) -> TrialResult | None:
    """The trial's own result, if a worker wrote it before the last driver died."""
    result = read_model(TrialDirectory.of(spec.directory).result, TrialResult)
    return result if result and result.fingerprint == spec.fingerprint() else None


def copy_result(ran: TrialSpec, spec: TrialSpec) -> bool:
    """Copy the result of a trial with the same fingerprint; False if it is no longer there."""
    of, to = TrialDirectory.of(ran.directory), TrialDirectory.of(spec.directory)
    if not of.result.exists():
        return False
    write_text(to.spec, spec.model_dump_json(indent=2))
    # The scores first: a directory with a result is complete.
    for source, target in ((of.scores, to.scores), (of.result, to.result)):
        if source.exists():
            with write_aside(target) as aside:
                shutil.copyfile(source, aside)
    return True


def trained_share(trial: TrialSpec) -> float:
    """Share of the training that its newest checkpoint has; 0 where it cannot be read here."""
    if trial.artifacts is not None:
        return 0.0
    files = TrialDirectory.of(trial.directory)
    done = 0
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        newest = read_json(files.checkpoint_marker)
        if newest["fingerprint"] == trial.course():
            done = int(newest["tag"].removeprefix("step"))
    # As of the trial's last start; none if it has not started.
    totals = [start.total_steps for start in _starts(files) if start.total_steps] if done else []
    return min(1.0, done / totals[-1]) if totals else 0.0


def resumed_at(files: TrialDirectory) -> list[int]:
    """Steps of the checkpoints that the trial was resumed from."""
    return [start.resumed_at for start in _starts(files) if start.resumed_at]


def _starts(files: TrialDirectory) -> list[Started]:
    found = []
    with suppress(OSError, UnicodeDecodeError):
        for line in read_text(files.events).splitlines():
            # A dying worker may leave half a line.
            with suppress(ValueError):
                if '"started"' in line:
                    found.append(Started.model_validate_json(line))
    return found
