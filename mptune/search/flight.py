"""A trial between being asked for and being told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import optuna

from mptune.trial import Event, Failed, Finished, Progress, Scoring, Started, Stopped, TrialSpec


@dataclass
class Heard:
    """What a running trial told last."""

    state: Literal["starting", "training", "scoring"] = "starting"
    progress: float = 0.0
    loss: float | None = None
    tokens_per_s: float | None = None

    def take(self, event: Event) -> None:
        match event:
            case Started():
                self.state, self.loss, self.tokens_per_s = "training", None, None
                self.progress = event.resumed_at / max(1, event.total_steps)
            case Progress():
                self.progress, self.loss = event.progress, event.loss
                self.tokens_per_s = event.tokens_per_s
            case Scoring():
                self.state, self.progress = "scoring", 1.0


@dataclass
class InFlight:
    """A trial that waits, runs, or has ended and is not told yet."""

    trial: optuna.Trial
    spec: TrialSpec
    retries: int = 0
    ending: Finished | Stopped | Failed | None = None
    heard: Heard = field(default_factory=Heard)
    asked_to_stop: bool = False
    held: str | None = None
    """Why the budgets have no room for it, in words."""
