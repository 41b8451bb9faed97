"""The team's own KPI is correlated with the scores, with intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.analysis.kpi import kpi_report
from mptune.trial import KpiValue, LMLScore, RateScore, Trial, TrialResult


def judged(kpi, lml, loss=None) -> list[Trial]:
    losses = [None] * len(kpi) if loss is None else loss
    rows = zip(kpi, lml, losses, strict=True)
    return [trial(n, s, lo, KpiValue(value=k)) for n, (k, s, lo) in enumerate(rows)]


def trial(number: int, lml: float, loss: float | None, kpi: KpiValue) -> Trial:
    rate = RateScore.model_construct(rate=0.15, loss=loss)
    result = TrialResult.model_construct(
        lml=LMLScore.model_construct(nats_per_token=lml),
        rates=() if loss is None else (rate,),
    )
    return Trial.model_construct(number=number, state="COMPLETE", result=result, kpi=kpi)


def test_the_better_predictor_is_named_and_certain():
    kpi = list(range(12))
    shuffled = [5, 0, 9, 3, 11, 1, 7, 2, 10, 4, 8, 6]
    report = kpi_report("f", judged(kpi, [-12.0 + k for k in kpi], shuffled))
    assert (report.better, report.certain, report.best_trial) == ("lml", True, 11)
    by = {(c.predictor, c.statistic): c for c in report.correlations}
    assert by["lml", "spearman"].value == by["lml", "kendall"].value == 1
    assert by["lml", "kendall"].low > 0.5
    # Kendall by hand: (concordant - discordant) pairs of the loss, of which less is better.
    pairs = [(i, j) for i in kpi for j in kpi if i < j]
    tau = -sum(np.sign(shuffled[j] - shuffled[i]) for i, j in pairs) / len(pairs)
    assert by["loss", "kendall"].value == pytest.approx(tau)
    assert report.difference == pytest.approx(1 - tau)


def test_a_lower_kpi_may_be_the_better_one():
    report = kpi_report("f", judged([3, 2, 1], [-3.0, -2.0, -1.0]), higher_is_better=False)
    assert report.best_trial == 2
    assert {c.value for c in report.correlations} == {1}
    assert {c.low for c in report.correlations} == {None}  # three trials say nothing


def test_trials_without_a_value_are_counted_and_left_out():
    found = [*judged([1, 2], [-2.0, -1.0]), trial(9, -5.0, None, KpiValue(value=None, error="x"))]
    report = kpi_report("f", found)
    assert (report.trials, report.failed, report.better) == (2, 1, None)


def test_equal_values_have_no_order():
    report = kpi_report("f", judged([1.0] * 8, list(range(8)), list(range(8))))
    assert {c.value for c in report.correlations} == {None}
    assert report.difference is None


def test_intervals_cover():
    rng = np.random.default_rng(0)
    rho, n, repeats = 0.5, 12, 400
    truth = {"spearman": 6 / np.pi * np.arcsin(rho / 2), "kendall": 2 / np.pi * np.arcsin(rho)}
    inside = {"spearman": 0, "kendall": 0}
    for _ in range(repeats):
        lml = rng.normal(size=n)
        kpi = rho * lml + np.sqrt(1 - rho**2) * rng.normal(size=n)
        for c in kpi_report("f", judged(kpi, lml)).correlations:
            inside[c.statistic] += c.low <= truth[c.statistic] <= c.high
    assert all(0.92 * repeats < hits < 0.985 * repeats for hits in inside.values()), inside
