"""Optuna's pruners as the spec names them."""

from __future__ import annotations

import optuna

from mptune.spec.schema import Pruner
from mptune.study.attributes import percent


def make_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Optuna's own pruner for the spec's section."""
    match pruner.kind:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup_trials)
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=percent(pruner.rungs[0]) if pruner.rungs else 1
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=percent(pruner.rungs[0]) if pruner.rungs else 1, max_resource=100
            )
