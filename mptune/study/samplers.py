"""Samplers as the spec names them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna

from mptune.spec.schema import Search
from mptune.spec.space import Suggests
from mptune.study.optuna_private import TPESampler, quiet, trial_seed

if TYPE_CHECKING:
    from mptune.study.exposure import ExposureSampler


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal depends only on the seed, the trial's number and the history.

    `exposure` needs the space, see `exposure_sampler`; without one it is TPE.
    """
    seed, startup = trial_seed(search.seed, number), search.startup_trials
    with quiet():
        match search.sampler.kind:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
            case "tpe" | "exposure":
                return TPESampler(seed, startup)


def exposure_sampler(
    search: Search, define: Callable[[Suggests], Mapping[str, Any]], length: float
) -> ExposureSampler | None:
    """The exposure sampler of a search; None if its sampler is another.

    Args:
        define: suggests the dimensions of a trial, see `ExposureSampler`.
        length: mean number of observed positions of a sequence.
    """
    if search.sampler.kind != "exposure":
        return None
    from mptune.study.exposure import ExposureSampler

    # A note before the run says so.
    warnings.filterwarnings("ignore", "exposure sampler: no dimension of the policy")
    return ExposureSampler(
        define,
        length=round(length),
        margin=1 / length,  # one nat per sequence
        seed=search.seed,
        startup_trials=search.startup_trials,
    )
