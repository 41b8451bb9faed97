"""A team's own function: measured apart, and correlated with intervals that cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mptune.analysis.kpi import kpi_report, measure
from mptune.spec.schema import Score
from mptune.trial import KpiValue, LMLScore, RateScore, Trial, TrialResult

FUNCTIONS = """
import sys, time
def good(model): print("chatter"); return len((model / "config.json").read_text())
def pair(model): return 2.0, 0.5
def raises(model): raise RuntimeError("no such benchmark")
def nan(model): return float("nan")
def words(model): return "high"
def dies(model): sys.exit("gone")
def slow(model): time.sleep(60)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "team_kpi.py").write_text(FUNCTIONS, encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("name", "value", "se", "error"),
    [
        ("good", 2.0, None, None),
        ("pair", 2.0, 0.5, None),
        ("raises", None, None, "RuntimeError: no such benchmark"),
        ("nan", None, None, "its value is nan"),
        ("words", None, None, "ValueError: could not convert string to float: 'high'"),
        ("dies", None, None, "its process ended with 1: gone"),
        ("missing", None, None, "AttributeError: module 'team_kpi' has no attribute 'missing'"),
    ],
)
def test_a_function_fails_only_itself(model, name, value, se, error):
    found = measure(f"team_kpi:{name}", model, timeout_s=60)
    assert (found.value, found.se, found.error) == (value, se, error)


def test_a_function_that_does_not_end_is_ended(model):
    assert measure("team_kpi:slow", model, 0.5).error == "took longer than 0.5 s"


@pytest.mark.parametrize("name", ["kpi", "a.b.c", "a:b:c", "a b:c", ":f"])
def test_what_names_no_function_is_refused(name):
    with pytest.raises(ValueError, match="kpi"):
        Score(kpi=name)


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
