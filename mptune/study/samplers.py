"""Optuna's samplers as the spec names them."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.spec.schema import Search
from mptune.study.attributes import MEMORY, has_failed
from mptune.study.tpe import TPESampler


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal depends on the seed, the trial's number and the history alone."""
    seed = (search.seed * 1_000_003 + number) % 2**31
    match search.sampler.kind:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=search.sampler.startup_trials
            )
        case "gp":
            return _gp(seed, search.sampler.startup_trials)
        case "tpe":
            return _tpe(seed, search.sampler.startup_trials)


def _tpe(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Multivariate, with conditional dimensions grouped; running trials count as poor ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=startup_trials, constant_liar=True)


def _gp(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _GPSampler(seed=seed, n_startup_trials=startup_trials)


class _GPSampler(optuna.samplers.GPSampler):
    """Optuna's, which reads constraints of complete trials only, with those that did not fit."""

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, Any],
    ) -> dict[str, Any]:
        pruned = study.get_trials(deepcopy=True, states=(TrialState.PRUNED,))
        unfit = [t for t in pruned if has_failed(t) and search_space.keys() <= t.params.keys()]
        if unfit:
            completed_trials = [deepcopy(t) for t in completed_trials]
            worst = min(float(t.value or 0.0) for t in completed_trials)
            for trial in completed_trials:
                trial.set_constraint(MEMORY, -1.0)
            for trial in unfit:
                trial.state, trial.value = TrialState.COMPLETE, worst
        found: dict[str, Any] = super()._sample_relative_impl(
            study, completed_trials + unfit, running_trials, search_space
        )
        return found
