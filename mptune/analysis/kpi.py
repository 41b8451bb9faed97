"""A team's own figure of merit (KPI) against the scores: which predicts it, and is that certain.

`mptune.search.kpi` runs the user's function that gives the KPI of a trained model.

Notation: n trials, r Spearman's or Kendall's rank correlation of a score with the KPI. Intervals of
one correlation are on Fisher's scale, tanh(atanh(r) +- z s). s^2 is the larger one of the variance
for a normal distribution, (1 + r^2 / 2) / (n - 3) for Spearman's (Bonett and Wright 2000,
doi:10.1007/BF02294183) and 0.437 / (n - 4) for Kendall's (Fieller et al. 1957,
doi:10.1093/biomet/44.3-4.470), and the jackknife's over trials, which holds for others and for
strong correlations, too. Two correlations with one KPI depend on each other; their difference has
the jackknife's standard error and n - 1 degrees of freedom (coverage: benchmarks/transfer.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from mptune.analysis.ranking import loss_at
from mptune.trial import Message, Trial

FloatArray: TypeAlias = NDArray[np.float64]
IndexArray: TypeAlias = NDArray[np.intp]
Predictor: TypeAlias = Literal["lml", "loss"]
Statistic: TypeAlias = Literal["spearman", "kendall"]

LEAST_TRIALS = 6
"""With fewer, no interval says anything."""

LEVEL = 0.95


class Correlation(Message):
    """Rank correlation of a score with the KPI over trials; positive: it predicts the KPI.

    Attributes:
        predictor: `lml`, or `loss`: minus the loss at 15 %.
        value: None where all values are equal.
        low: ends of the 95 % interval; None with too few trials.
    """

    predictor: Predictor
    statistic: Statistic
    value: float | None
    low: float | None
    high: float | None


class KpiReport(Message):
    """The KPI over the finished trials.

    Attributes:
        name: the function, e.g. `mypackage.kpi:downstream`.
        trials: trials with a value.
        failed: trials on which the function failed.
        difference: Kendall's tau of the LML minus that of the loss at 15 %.
        difference_low: ends of its 95 % interval.
        better: the one with the higher tau, if any.
        certain: the interval of the difference leaves out zero.
        best_trial: number of the trial with the best KPI.
    """

    name: str
    higher_is_better: bool = True
    trials: int
    failed: int = 0
    correlations: tuple[Correlation, ...] = ()
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    better: Predictor | None = None
    certain: bool = False
    best_trial: int | None = None


def kpi_report(
    name: str, trials: Sequence[Trial], higher_is_better: bool = True
) -> KpiReport | None:
    """The KPI over finished trials, and which score predicts it better; None without trials.

    Args:
        name: of the function.
        trials: those without a KPI are left out, as are trials that took over another's result.
        higher_is_better: whether a higher KPI is a better one.
    """
    measured = [
        (trial, trial.kpi, trial.result)
        for trial in trials
        if trial.kpi and trial.result and trial.state == "COMPLETE" and trial.same_as is None
    ]
    if not measured:
        return None
    sign = 1.0 if higher_is_better else -1.0
    valued = [(t, sign * k.value, result) for t, k, result in measured if k.value is not None]
    kpi_n = np.array([value for _, value, _ in valued])
    # What may predict the KPI, [n] each, higher is better; the loss only if all trials have it.
    scores: dict[Predictor, FloatArray] = {
        "lml": np.array([result.lml.nats_per_token for _, _, result in valued])
    }
    losses = [loss for _, _, result in valued if (loss := loss_at(result, 0.15)) is not None]
    if len(losses) == len(valued):
        scores["loss"] = -np.array(losses)
    best = max(valued, key=lambda row: row[1], default=None)
    return KpiReport(
        name=name,
        higher_is_better=higher_is_better,
        trials=len(valued),
        failed=len(measured) - len(valued),
        correlations=tuple(_correlations(scores, kpi_n)),
        **_better(scores, kpi_n),
        best_trial=None if best is None else best[0].number,
    )


def _correlations(scores: dict[Predictor, FloatArray], kpi_n: FloatArray) -> Iterator[Correlation]:
    for predictor, score_n in scores.items():
        for statistic in STATISTICS:
            value = _rank_correlation(statistic, score_n, kpi_n)
            low, high = _interval(statistic, value, score_n, kpi_n)
            yield Correlation(
                predictor=predictor, statistic=statistic, value=value, low=low, high=high
            )


STATISTICS: dict[Statistic, str] = {"spearman": "spearmanr", "kendall": "kendalltau"}
"""Names in `scipy.stats`, which takes a second to import: every command would wait for it."""


def _rank_correlation(statistic: Statistic, score_n: FloatArray, kpi_n: FloatArray) -> float | None:
    """None where there are fewer than two trials, or one side has no two different values."""
    if len(np.unique(score_n)) < 2 or len(np.unique(kpi_n)) < 2:
        return None
    from scipy import stats

    found = getattr(stats, STATISTICS[statistic])(score_n, kpi_n)
    # Rounding would make a perfect order an almost perfect one.
    return round(float(found.statistic), 12)


def _interval(
    statistic: Statistic, value: float | None, score_n: FloatArray, kpi_n: FloatArray
) -> tuple[float | None, float | None]:
    """Ends of the interval of one correlation; None with too few trials."""
    n = len(kpi_n)
    if value is None or n < LEAST_TRIALS:
        return None, None
    # atanh of a perfect order is infinite, so that is taken as almost perfect.
    most = 1 - (1 / n**2 if statistic == "spearman" else 1 / n)
    inside = min(max(value, -most), most)
    variance = (1 + value**2 / 2) / (n - 3) if statistic == "spearman" else 0.437 / (n - 4)
    spread = _jackknife(lambda i: _rank_correlation(statistic, score_n[i], kpi_n[i]), n)
    variance = max(variance, (spread or 0.0) / (1 - inside**2) ** 2)
    half = float(ndtri(0.5 + LEVEL / 2)) * math.sqrt(variance)
    low = -1.0 if value == -1 else math.tanh(math.atanh(inside) - half)
    return low, 1.0 if value == 1 else math.tanh(math.atanh(inside) + half)


def _jackknife(statistic: Callable[[IndexArray], float | None], n: int) -> float | None:
    """Variance of a statistic of the trials with the given indices; None if one has no value.

    It leaves out one trial at a time, or one of 50 groups of trials.
    """
    parts = np.array_split(np.arange(n), min(n, 50))
    values = [statistic(np.setdiff1d(np.arange(n), part)) for part in parts]
    if None in values:
        return None
    return (len(parts) - 1) * float(np.var(np.array(values, np.float64)))


def _better(scores: dict[Predictor, FloatArray], kpi_n: FloatArray) -> dict[str, Any]:
    """The fields of `KpiReport` on the difference of the two."""
    if "loss" not in scores or len(kpi_n) < LEAST_TRIALS:
        return {}
    difference = _difference(scores, kpi_n)
    if difference is None:
        return {}
    fields: dict[str, Any] = {"difference": difference}
    if difference:
        fields["better"] = "lml" if difference > 0 else "loss"
    n = len(kpi_n)
    variance = _jackknife(lambda i: _difference({k: v[i] for k, v in scores.items()}, kpi_n[i]), n)
    if variance is None:
        return fields
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * math.sqrt(variance)
    low, high = difference - half, difference + half
    ends = {"difference_low": low, "difference_high": high}
    return {**fields, **ends, "certain": low > 0 or high < 0}


def _difference(scores: dict[Predictor, FloatArray], kpi_n: FloatArray) -> float | None:
    """Kendall's tau of the LML with the KPI minus that of the loss."""
    lml, loss = (_rank_correlation("kendall", scores[p], kpi_n) for p in ("lml", "loss"))
    return None if lml is None or loss is None else lml - loss
