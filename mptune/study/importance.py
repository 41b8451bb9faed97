"""Which dimensions of the space decide the score."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.trial import TrialState

from mptune.paths import RunDirectory
from mptune.study.storage import has_study, open_storage

MIN_JUDGED = 4
"""Finished trials below which the importance of a dimension is not worth a word."""


def importances(run: RunDirectory, url: str | None, name: str) -> dict[str, float]:
    """Share of the score that each dimension decides, largest first; empty with too few trials.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) over the finished trials, of the dimensions
    that all of them have: what only some have, as the rate of one of several policies, would be
    judged on a handful.
    """
    if not has_study(run, url, name):
        return {}
    found = optuna.load_study(study_name=name, storage=open_storage(run, url))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    done = [t for t in found.trials if t.state == TrialState.COMPLETE]
    if len(done) < MIN_JUDGED:
        return {}
    params = sorted(set.intersection(*(set(t.params) for t in done)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = optuna.importance.get_param_importances(
                found, evaluator=evaluator, params=params
            )
        except (ValueError, RuntimeError):  # no dimension took two values
            return {}
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}
