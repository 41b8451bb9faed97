"""How far a trial that does not run has come: what its checkpoint has of its training."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mptune.paths import TrialDirectory
from mptune.trial import TrialSpec


def share_done(trial: TrialSpec) -> float:
    """Share of the training that need not be repeated; 0 where it cannot be read from here."""
    if trial.artifacts is not None:
        return 0.0
    files = TrialDirectory.of(trial.directory)
    done = _newest_step(files.checkpoint_marker, trial)
    total = _total_steps(files.events) if done else 0
    return min(1.0, done / total) if total else 0.0


def _newest_step(marker: Path, trial: TrialSpec) -> int:
    """Of the newest checkpoint of this training, by the name of its folder."""
    try:
        newest = json.loads(marker.read_text(encoding="utf-8"))
        if newest["fingerprint"] != trial.course():
            return 0
        return int(newest["tag"].removeprefix("step"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _total_steps(events: Path) -> int:
    """As the trial said when it last started."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    started = (_of_start(line) for line in reversed(lines) if '"started"' in line)
    return next((total for total in started if total), 0)


def _of_start(line: str) -> int:
    """0 of a line that a dying worker has not written to its end."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["total_steps"])
    return 0
