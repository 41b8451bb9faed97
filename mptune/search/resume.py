"""What earlier drivers and trials have left, so that it is not run again."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.trial import TrialResult, TrialSpec


def finished_before(spec: TrialSpec) -> TrialResult | None:
    """The trial's own result, if a worker wrote it before the last driver died."""
    path = TrialDirectory.of(spec.directory).result
    try:
        result = TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.fingerprint == spec.fingerprint() else None


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
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        newest = json.loads(files.checkpoint_marker.read_text(encoding="utf-8"))
        if newest["fingerprint"] == trial.course():
            done = int(newest["tag"].removeprefix("step"))
    total = _total_steps(files) if done else 0
    return min(1.0, done / total) if total else 0.0


def _total_steps(files: TrialDirectory) -> int:
    """Total steps as of the trial's last start; 0 if it has not started."""
    with suppress(OSError):
        for line in reversed(files.events.read_text(encoding="utf-8").splitlines()):
            # A dying worker may leave half a line.
            with suppress(ValueError, KeyError, TypeError):
                if '"started"' in line and (total := int(json.loads(line)["total_steps"])):
                    return total
    return 0
