"""What earlier drivers and trials have left, so that it need not be run again."""

from __future__ import annotations

import shutil

import optuna
from optuna.trial import TrialState

from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.search.forecast import Predictor
from mptune.study.storage import attributes_of
from mptune.trial import TrialResult, TrialSpec

TAUGHT = 50
"""Finished trials of earlier drivers that predictions are made from."""


def teach(predictor: Predictor, study: optuna.Study) -> None:
    """Tell how long the last trials of a study took that has run before."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ran = [t for t in finished if "same_as" not in t.user_attrs]
    for trial in ran[-TAUGHT:]:
        attrs = attributes_of(study, trial)
        if "result" in attrs:
            spec = TrialSpec.model_validate_json(attrs["trial_spec"])
            predictor.learn(spec, TrialResult.model_validate_json(attrs["result"]))


def finished_before(spec: TrialSpec) -> TrialResult | None:
    """The trial's own result, if a worker wrote it before the last driver died."""
    path = TrialDirectory.of(spec.directory).result
    try:
        result = TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.fingerprint == spec.fingerprint() else None


def take_over(ran: TrialSpec, spec: TrialSpec) -> bool:
    """Let a trial have the outcome of one that ran the same; false if there is none any more."""
    of, to = TrialDirectory.of(ran.directory), TrialDirectory.of(spec.directory)
    if not of.result.exists():
        return False
    write_text(to.spec, spec.model_dump_json(indent=2))
    # Scores first: a result that stands is complete.
    for source, target in ((of.scores, to.scores), (of.result, to.result)):
        if source.exists():
            with write_aside(target) as aside:
                shutil.copyfile(source, aside)
    return True
