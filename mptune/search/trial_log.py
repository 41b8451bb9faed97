"""The log of one trial: its events, or the output of one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from mptune import status
from mptune.errors import InputError
from mptune.paths import RunDirectory, TrialDirectory
from mptune.study.lease import is_driven
from mptune.trial import StageName


@dataclass(frozen=True)
class TrialLog:
    """The log of one trial.

    Attributes:
        rank: the rank whose output is the log; None: the trial's events.
        since: wall-clock time from which an older status file is not trusted.
    """

    run: RunDirectory
    number: int
    stage: StageName
    rank: int | None
    since: float = field(default_factory=time.time)

    @property
    def trial(self) -> TrialDirectory:
        return self.run.trial(self.number, self.stage)

    @property
    def file(self) -> Path:
        return self.trial.events if self.rank is None else self.trial.log(self.rank)

    def check(self, follow: bool) -> None:
        """Raise if the log does not exist; with `follow`, only if it will not be written either.

        Raises:
            InputError: there is no such trial or rank; the message lists the existing ones.
        """
        if follow and self.is_active():
            return
        if not self.trial.root.is_dir():
            folders = self.trial.root.parent.glob("[0-9]*")
            known = sorted(int(p.name) for p in folders if p.name.isdigit())
            others = f"there are trials {known[0]} to {known[-1]}" if known else "none has"
            raise InputError(f"{self.run.root}: trial {self.number} has not started; {others}")
        if self.rank is not None and self.rank not in self.trial.ranks():
            ranks = ", ".join(map(str, self.trial.ranks()))
            existing = f"there is output of ranks {ranks}" if ranks else "no rank has any output"
            raise InputError(f"{self.trial.root}: no output of rank {self.rank}; {existing}")

    def is_active(self) -> bool:
        """Whether a driver runs that has the trial in flight, or may have it.

        A status file from before `since` may miss the trial: then an existing directory counts.
        """
        now = status.read(self.run)
        if not is_driven(self.run):
            return False
        if now is not None and now.stage == self.stage and now.in_flight(self.number):
            return True
        return (now is None or now.time < self.since) and self.trial.root.is_dir()
