"""Imputation methods that people would use otherwise, for comparison with a trained model.

Each takes a `Task` and returns all values [N, C]; NaN where a method has none.

Shape suffixes: N rows, C columns, T steps of a series.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LAGS = (-2, -1, 1, 2)
"""Steps whose values a regression sees besides those of the same step."""

MOST_SEASON = 400
"""Most steps of a season."""

MOST_ROWS = 2000
"""Training rows that the nearest neighbours are sought among: distances to all would take hours."""


@dataclass(frozen=True)
class Task:
    """Values with some hidden.

    Attributes:
        given_NC: numbers, and categories' numbers; NaN where missing or hidden.
        hidden_NC: those of the hidden ones that are compared.
        train_N: rows to learn from.
        series: rows of each series in order of time, -1 at missing steps; of a plain table, none.
        categories_C: which columns are categories.
    """

    given_NC: FloatArray
    hidden_NC: BoolArray
    train_N: BoolArray
    series: Sequence[IntArray]
    categories_C: BoolArray

    def around(self, values_NC: FloatArray) -> FloatArray:
        """The values, and those at the steps before and after [N, (1 + lags) C]."""
        wide = [values_NC]
        for lag in LAGS if self.series else ():
            moved_NC = np.full_like(values_NC, np.nan)
            for series_T in self.series:
                here, there = series_T[max(0, -lag) :], series_T[max(0, lag) :]
                here, there = here[: len(there)], there[: len(here)]
                both = (here >= 0) & (there >= 0)
                moved_NC[here[both]] = values_NC[there[both]]
            wide.append(moved_NC)
        return np.concatenate(wide, axis=1)


def mean(task: Task) -> FloatArray:
    """The training mean, of categories the most frequent one."""
    with warnings.catch_warnings(action="ignore"):  # of a column without a known value
        found_C = np.nanmean(task.given_NC[task.train_N], axis=0)
    for c in np.flatnonzero(task.categories_C):
        values, counts = np.unique(task.given_NC[task.train_N, c], return_counts=True)
        found_C[c] = values[np.where(np.isnan(values), 0, counts).argmax()]
    return np.broadcast_to(found_C, task.given_NC.shape)


def last_value(task: Task) -> FloatArray:
    """The last known value of the same series; the mean where there is none."""
    mean_NC = mean(task)
    found_NC = mean_NC.copy()
    for series_T in task.series:
        last_C = mean_NC[0]
        for row in series_T[series_T >= 0]:
            found_NC[row] = last_C
            last_C = np.where(np.isnan(task.given_NC[row]), last_C, task.given_NC[row])
    return found_NC


def interpolation(task: Task) -> FloatArray:
    """Linear between the nearest known values of the series; of categories the last value."""
    found_NC = last_value(task)
    for series_T in task.series:
        step = np.flatnonzero(series_T >= 0)
        for c in np.flatnonzero(~task.categories_C):
            values = task.given_NC[series_T[step], c]
            known = ~np.isnan(values)
            if known.any():
                found_NC[series_T[step], c] = np.interp(step, step[known], values[known])
    return found_NC


def seasonal(task: Task) -> FloatArray:
    """The value one season before, else after, in the series; of categories the last value.

    A column's season is the number of steps after which its training values differ least, compared
    with fewer steps: a slow series differs little after any few.
    """
    found_NC = last_value(task)
    learned_NC = np.where(task.train_N[:, None], task.given_NC, np.nan)
    lags = range(1, min(MOST_SEASON, max(map(len, task.series), default=0) // 2) + 1)
    apart_LC = np.zeros((len(lags), task.given_NC.shape[1]))
    for row_C, lag in zip(apart_LC, lags, strict=True):
        pairs = [(s[:-lag], s[lag:]) for s in task.series if len(s) > lag]
        first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        both = (first >= 0) & (second >= 0)
        change_NC = learned_NC[second[both]] - learned_NC[first[both]]
        known_C = np.maximum((~np.isnan(change_NC)).sum(0), 1)
        row_C[:] = np.nansum(change_NC**2, axis=0) / known_C
    drop_LC = np.maximum.accumulate(apart_LC, axis=0) - apart_LC
    for series_T in task.series if len(lags) else ():
        for c in np.flatnonzero(~task.categories_C):
            lag = lags[int(drop_LC[:, c].argmax())]
            values_T = np.where(series_T >= 0, task.given_NC[series_T, c], np.nan)
            gone = np.full(min(lag, len(values_T)), np.nan)
            before_T = np.concatenate([gone, values_T[:-lag]])
            season_T = np.where(np.isnan(before_T), np.append(values_T[lag:], gone), before_T)
            here_T = (series_T >= 0) & ~np.isnan(season_T)
            found_NC[series_T[here_T], c] = season_T[here_T]
    return found_NC


def boosting(task: Task) -> FloatArray:
    """scikit-learn's HistGradientBoosting for each column, on the others and the steps around."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    found_NC = np.full_like(task.given_NC, np.nan)
    # The other values of a training row are hidden as often as in the rows that are compared.
    rows_N = task.hidden_NC.any(1)
    known = (task.hidden_NC | ~np.isnan(task.given_NC))[rows_N].sum()
    gone_NC = np.random.default_rng(0).random(task.given_NC.shape) < task.hidden_NC.sum() / known
    features = task.around(np.where(gone_NC & task.train_N[:, None], np.nan, task.given_NC))
    for c in np.flatnonzero(task.hidden_NC.any(0)):
        others = np.delete(features, c, axis=1)
        learn, asked = task.train_N & ~np.isnan(task.given_NC[:, c]), task.hidden_NC[:, c]
        known_N = task.given_NC[learn, c]
        if len(np.unique(known_N)) < 2:  # which scikit-learn refuses
            found_NC[asked, c] = mean(task)[asked, c]
            continue
        others = others[:, ~np.isnan(others[learn]).all(0)]
        kinds = (HistGradientBoostingRegressor, HistGradientBoostingClassifier)
        fitted = kinds[int(task.categories_C[c])](random_state=0).fit(others[learn], known_N)
        found_NC[asked, c] = fitted.predict(others[asked])
    return found_NC


def neighbours(task: Task) -> FloatArray:
    """scikit-learn's KNNImputer on numbers and the steps around them, each in its deviations."""
    from sklearn.impute import KNNImputer

    numbers = ~task.categories_C
    found_NC = np.full_like(task.given_NC, np.nan)
    train_NC = task.given_NC[task.train_N][:, numbers]
    centre_C, scale_C = np.nanmean(train_NC, axis=0), np.nanstd(train_NC, axis=0) + 1e-12
    wide = task.around((task.given_NC[:, numbers] - centre_C) / scale_C)
    rows = np.flatnonzero(task.train_N)
    if len(rows) > MOST_ROWS:
        rows = np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False)
    asked = task.hidden_NC[:, numbers].any(1)
    fitted = KNNImputer(weights="distance", keep_empty_features=True).fit(wide[rows])
    filled = fitted.transform(wide[asked])[:, : int(numbers.sum())] * scale_C + centre_C
    found_NC[np.ix_(asked, numbers)] = filled
    return found_NC


def iterative(task: Task) -> FloatArray:
    """scikit-learn's IterativeImputer on numbers and the steps around them."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    numbers = ~task.categories_C
    found_NC = np.full_like(task.given_NC, np.nan)
    wide = task.around(task.given_NC[:, numbers])
    fitted = IterativeImputer(max_iter=10, random_state=0, keep_empty_features=True)
    with warnings.catch_warnings(action="ignore"):  # it warns that it has not converged
        filled = fitted.fit(wide[task.train_N]).transform(wide)
    found_NC[:, numbers] = filled[:, : int(numbers.sum())]
    return found_NC


BASELINES: dict[str, Callable[[Task], FloatArray]] = {
    "mean": mean,
    "last value": last_value,
    "interpolation": interpolation,
    "seasonal": seasonal,
    **(
        {"HistGradientBoosting": boosting, "KNN": neighbours, "IterativeImputer": iterative}
        if find_spec("sklearn")
        else {}
    ),
}
"""By the name in the table of `mptune impute --check`."""
