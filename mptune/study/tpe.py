"""Optuna's tree-structured Parzen estimator, which proposes the same and takes less time for it.

A proposal reads the whole history. With 10,000 trials, half of Optuna's time goes into sorting out
afresh, trial by trial, which dimensions occur together and what their values are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.trial import FrozenTrial, TrialState

Space = dict[str, BaseDistribution]


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's, with `multivariate` and `group`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, multivariate=True, group=True)
        self._group_decomposed_search_space = _DistinctSpaces()

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: Space, study: optuna.Study
    ) -> dict[str, NDArray[np.float64]]:
        """Values of each dimension, of the trials that have all of them."""
        known = [t.params if t.state.is_finished() else self._get_params(t, study) for t in trials]
        full = [params for params in known if search_space.keys() <= params.keys()]
        return {
            name: _internal([params[name] for params in full], distribution)
            for name, distribution in search_space.items()
        }


def _internal(values: Sequence[Any], distribution: BaseDistribution) -> NDArray[np.float64]:
    """What `to_internal_repr` makes of each: the index of a choice, or the number itself."""
    if isinstance(distribution, CategoricalDistribution):
        values = [distribution.to_internal_repr(value) for value in values]
    return np.asarray(values, dtype=np.float64)


class _DistinctSpaces(_GroupDecomposedSearchSpace):
    """Adds each set of dimensions once: the groups are split along it ever after."""

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> _SearchSpaceGroup:
        """The dimensions of trials that say something, in groups that occur together."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        distinct: dict[tuple[str, ...], Space] = {}
        for trial in study._get_trials(deepcopy=False, states=states, use_cache=use_cache):
            distinct.setdefault(tuple(trial.distributions), trial.distributions)
        group = _SearchSpaceGroup()
        for space in distinct.values():
            group.add_distributions(space)
        return group
