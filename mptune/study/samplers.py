"""Optuna's samplers and pruners as the spec names them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from mptune.spec.schema import Pruner, Search
from mptune.spec.space import Suggests
from mptune.study.optuna_private import GPSampler, TPESampler, with_trials
from mptune.study.records import MEMORY, percent


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal depends only on the seed, the trial's number and the history.

    TPE is multivariate, groups conditional dimensions, and treats running trials as poor ones.
    `exposure` needs the space, see `samplers_of`; without one it is TPE.
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
            case "tpe" | "exposure":
                return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def samplers_of(
    search: Search, define: Callable[[Suggests], Mapping[str, Any]], length: float
) -> Callable[[int], optuna.samplers.BaseSampler]:
    """The sampler of each trial of a search, by the trial's number.

    Args:
        define: suggests the dimensions of a trial, see `ExposureSampler`.
        length: mean number of observed positions of a sequence.
    """
    if search.sampler.kind != "exposure":
        return partial(make_sampler, search)
    from mptune.study.exposure import ExposureSampler

    sampler = ExposureSampler(
        define,
        length=round(length),
        margin=1 / length,  # one nat per sequence
        seed=search.seed,
        startup_trials=search.sampler.startup_trials,
    )
    return lambda number: sampler


class _WithinSize(optuna.pruners.BasePruner):
    """Compares a trial with trials of its own model size: others learn at another pace."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        pruner: Any = super()
        return bool(pruner.prune(with_trials(study, partial(_same_size, trial)), trial))


class MedianWithinSize(_WithinSize, optuna.pruners.MedianPruner):
    """Optuna's median pruner among trials of one model size."""


class HalvingWithinSize(_WithinSize, optuna.pruners.SuccessiveHalvingPruner):
    """Optuna's successive halving among trials of one model size."""


class HyperbandWithinSize(_WithinSize, optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband among trials of one model size."""


def make_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Optuna's own pruner for the spec's section, among trials of one size.

    All trials of a study have the same training budget.
    """
    first = percent(pruner.rungs[0]) if pruner.rungs else 1
    match pruner.kind:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return MedianWithinSize(n_startup_trials=pruner.startup_trials)
        case "halving":
            return HalvingWithinSize(min_resource=first)
        case "hyperband":
            return HyperbandWithinSize(min_resource=first, max_resource=100)


def _same_size(one: FrozenTrial, other: FrozenTrial) -> bool:
    return _size(one) == _size(other)


def _size(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's choices and whole numbers of the model section; a real number, such as the
    dropout rate, would make every trial the only one of its size."""
    return {
        name: trial.params[name]
        for name, dimension in trial.distributions.items()
        if name.split(".")[0] == "model" and not isinstance(dimension, FloatDistribution)
    }
