"""Counts of a study's trials by state, kept up to date by the driver.

Only the driver that holds the lease writes to a study. So the counts at its start, updated by its
own changes, are complete, and the study is not read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.status import Trials
from mptune.study.records import ENDED, has_failed, is_paused, used_share


@dataclass
class History:
    """The trials of a study by outcome."""

    asked: int = 0
    """Number of trials in any state; the next new one gets this number."""
    ended: int = 0
    used: float = 0.0
    """Trainings that the ended trials used; a paused one used the part that it was trained for."""
    pruned: int = 0
    failed: int = 0
    refused: int = 0
    """Failed trials that were not submitted because no gang has enough memory for them."""
    repeated: int = 0
    """Finished trials that copied the result of an earlier trial with the same spec."""
    last_failure: str = ""
    waiting: set[int] = field(default_factory=set)
    twins: dict[str, int] = field(default_factory=dict)
    """Fingerprint -> number, of finished trials that were trained."""
    best: dict[str, Any] | None = None
    """`number`, `label` and `nats_per_token` of the best finished trial."""

    @classmethod
    def of(cls, study: optuna.Study) -> History:
        """Read every trial of the study."""
        history = cls()
        for trial in study.get_trials(deepcopy=False):
            history._add(trial)
        return history

    @property
    def next_number(self) -> int:
        """The number that `ask` will give: the oldest waiting trial, else a new one."""
        return min(self.waiting, default=self.asked)

    @property
    def unrun(self) -> int:
        """Ended trials that used no gang."""
        return self.refused + self.repeated

    def ask(self, number: int) -> None:
        """Count a trial that was asked for: a waiting one, or a new one."""
        self.asked = max(self.asked, number + 1)
        self.waiting.discard(number)

    def wait(self, number: int) -> None:
        """Count a trial that is back in the queue."""
        self.waiting.add(number)

    def complete(self, number: int, attrs: Mapping[str, Any], value: float) -> None:
        """Count a finished trial, with its score in nats per token."""
        self._end(1.0)
        self.repeated += "same_as" in attrs
        if self.best is None or value > self.best["nats_per_token"]:
            label = attrs.get("label", "")
            self.best = {"number": number, "label": label, "nats_per_token": value}
        if "fingerprint" in attrs and "same_as" not in attrs:
            self.twins.setdefault(attrs["fingerprint"], number)

    def prune(self, share: float = 1.0) -> None:
        """Count a trial that was stopped early, or paused with this share of its training done."""
        self._end(share)
        self.pruned += 1

    def go_on(self, share: float) -> None:
        """Count a paused trial, with this share of its training done, as one in flight again."""
        self.ended -= 1
        self.used -= share
        self.pruned -= 1

    def fail(self, reason: str | None, detail: str | None) -> None:
        """Count a failed trial."""
        self._end(1.0)
        self.failed += 1
        self.last_failure = f"{reason}: {detail}"

    def trials(self, total: int) -> Trials:
        """Counts by state, of `total` trials that are to run."""
        complete = self.ended - self.pruned - self.failed
        used = round(self.used, 4)
        return Trials(
            total=total, used=used, complete=complete, pruned=self.pruned, fail=self.failed
        )

    def _end(self, share: float) -> None:
        self.ended += 1
        self.used += share

    def _add(self, trial: FrozenTrial) -> None:
        self.asked += 1
        attrs = trial.user_attrs
        if trial.state == TrialState.WAITING:
            self.wait(trial.number)
        elif trial.state == TrialState.COMPLETE:
            self.complete(trial.number, attrs, float(trial.value or 0.0))
        elif has_failed(trial):
            self.refused += bool(attrs.get("refused"))
            self.fail(attrs.get("reason"), attrs.get("detail"))
        elif trial.state in ENDED or is_paused(trial):
            self.prune(used_share(trial))
