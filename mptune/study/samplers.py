"""Optuna's samplers and pruners as the spec names them."""

from __future__ import annotations

import warnings

import optuna

from mptune.spec.schema import Pruner, Search
from mptune.study.optuna_private import GPSampler, TPESampler
from mptune.study.records import MEMORY, percent


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal depends only on the seed, the trial's number and the history.

    TPE is multivariate, groups conditional dimensions, and treats running trials as poor ones.
    """
    seed = (search.seed * 1_000_003 + number) % 2**31
    startup = search.sampler.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler.kind:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
            case "gp":
                return GPSampler(MEMORY, seed=seed, n_startup_trials=startup)
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def make_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Optuna's own pruner for the spec's section."""
    first = percent(pruner.rungs[0]) if pruner.rungs else 1
    match pruner.kind:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup_trials)
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=first)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=100)
