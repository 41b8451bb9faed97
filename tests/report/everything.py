"""A made-up study with all there is: domains, missing values, sizes, a KPI, confirmation."""

from __future__ import annotations

import numpy as np

from mptune.analysis.comparison import ArmValues, ComparisonReport, runs_of
from mptune.analysis.compute import EquivalentCompute
from mptune.analysis.kpi import Correlation, KpiReport
from mptune.analysis.results import Importance, Report
from mptune.analysis.selection import Candidate, Confirmation, SearchSelection
from mptune.analysis.sizes import BySize, Extrapolation, FormShare, LawValue, SizeLaw, SizePoint
from mptune.trial import KpiValue, LearningPoint, LMLScore, MissingScore, Trial, TrialResult
from tests.report.conftest import SIZES, comparison, make


def study() -> Report:
    report = make(compared=comparison(("fixed 15 %", "fixed 30 %", "accumulated")))
    assert report.comparison is not None
    return report.model_copy(
        update={
            "trials": tuple(_dressed(row) for row in report.trials),
            "comparison": _with_compute(report.comparison),
            "selection": _selection(report.trials),
            "by_size": _by_size(),
            "kpi": _kpi(),
            "importance": (
                Importance(name="policy", share=0.61, trials=10),
                Importance(name="training.optimizer.learning_rate", share=0.27, trials=10),
                Importance(name="model", share=0.12, trials=10),
            ),
        }
    )


def _learning(final: float, size: str, speed: float) -> tuple[LearningPoint, ...]:
    return tuple(
        LearningPoint(
            progress=p, tokens=int(1.5e6 * p), flops=6 * SIZES[size] * 1.5e6 * p, seconds=48 * p,
            nats_per_token=final - 0.9 * float(np.exp(-speed * p)), se=0.012,
        )
        for p in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    )  # fmt: skip


def _dressed(row: Trial) -> Trial:
    """With its law over training, what the sampler chose, and a KPI if it finished."""
    params: dict[str, float | str] = {
        "policy": str(row.policy["kind"]),
        "model": row.size_label,
        "training.optimizer.learning_rate": 1e-3 * 1.4 ** (row.number % 5),
    }
    falling, rate = row.policy.get("kind") == "linear", float(row.policy.get("rate", 0.5))
    spread = 0.0 if "rate" in row.policy or falling else 0.42
    means = [0.6 - 0.45 * (k + 0.5) / 16 if falling else rate for k in range(16)]
    laws = tuple((m - spread, m, m + spread) for m in means)
    kpi = None
    if row.result is not None:
        value = 0.9 + 0.05 * row.result.lml.nats_per_token + 0.003 * (row.number % 4)
        kpi = KpiValue(value=value, se=0.004, seconds=1.5)
    update = {"params": params, "mask_rates": laws, "kpi": kpi, "result": _elsewhere(row.result)}
    return row.model_copy(update=update)


def _elsewhere(result: TrialResult | None) -> TrialResult | None:
    """With scores on two domains, and with missing values."""
    if result is None:
        return None

    def less(drop: float) -> LMLScore:
        return result.lml.model_copy(update={"nats_per_token": result.lml.nats_per_token - drop})

    missing = {"random": less(0.1), "block": less(0.16)}
    update = {
        "lml_shift": {"numpy": less(0.21), "e-mail <lists>": less(0.5)},
        "lml_missing": tuple(
            MissingScore(fraction=0.2, kind=kind, lml=lml) for kind, lml in missing.items()
        ),
    }
    return result.model_copy(update=update)


def _with_compute(report: ComparisonReport) -> ComparisonReport:
    learning = {
        name: _learning(arm[0].nats_per_token, list(SIZES)[1], 3.0 + k)
        for k, (name, arm) in enumerate(report.arms.items())
    }
    found = []
    for unit, factor in (("tokens", 0.58), ("flops", 0.62), ("seconds", 0.6)):
        found.append(
            EquivalentCompute(
                arm="accumulated",
                reaches="fixed 15 %",
                unit=unit,
                level=-1.79,
                factor=factor,
                low=factor - 0.1,
                high=factor + 0.11,
                reading="factor",
                spent=1.06,
                probability_reached=1.0,
                seeds=3,
            )
        )
        found.append(EquivalentCompute(
            arm="fixed 15 %", reaches="accumulated", unit=unit, level=-1.65, factor=None, low=1.2,
            high=None, reading="at least", spent=0.94, probability_reached=0.02,
            seeds=3))  # fmt: skip
    rate = "training.optimizer.learning_rate"
    tried = ((0.001, -1.81), (0.003, -1.79), (0.009, None))
    values = (
        ArmValues(arm="fixed 15 %", values={rate: 0.002}, source="own trial", trial=3),
        ArmValues(arm="accumulated", values={rate: 0.003}, source="ladder", tried=tried),
    )
    update = {
        "learning": learning,
        "compute": tuple(found),
        "runs": tuple(runs_of(report.arms, report.baseline)),
        "values": values,
    }
    return report.model_copy(update=update)


def _selection(trials: tuple[Trial, ...]) -> SearchSelection:
    scores = sorted(((t.nats_per_token, t.number) for t in trials if t.result), reverse=True)
    shares = [0.71, 0.2, 0.05, 0.02, 0.01] + [0.002] * len(scores)
    candidates = tuple(
        Candidate(
            trial=number, nats_per_token=score, half_width_total=0.031, expected=score - 0.012,
            half_width=0.021, probability=shares[k], expected_regret=0.002 + 0.03 * k,
            runs=4 if k < 2 else 1, confirmation=Confirmation(
                nats_per_token=score - 0.014, half_width=0.018, seeds=3, optimism=0.014,
            ) if k < 2 else None,
        )
        for k, (score, number) in enumerate(scores)
    )  # fmt: skip
    return SearchSelection(
        candidates=candidates, recommended=candidates[0].trial, chosen_by="confirmation",
        seed_sd=(0.009, 0.04), seed_runs=12,
    )  # fmt: skip


def _law(what: str, of: str, start: float, slope: float) -> SizeLaw:
    def at(n: float) -> LawValue:
        value = start + slope * float(np.log10(n / 1e5))
        return LawValue(parameters=n, value=value, low=value - 0.02, high=value + 0.025)

    points = tuple(
        SizePoint(parameters=n, value=at(n).value + 0.01, low=at(n).low, high=at(n).high, runs=9)
        for n in (139_328, 860_416, 3_400_000)
    )
    weights = {"constant": 0.01, "linear": 0.5, "power": 0.3, "saturating": 0.19, "turning": 0.0}
    return SizeLaw(
        what=what, of=of, points=points, left_out=at(3_400_000), covered=True, size_matters=True,
        forms=tuple(
            FormShare(form=form, weight=weight, values=(at(3e7).value, at(3.4e8).value))
            for form, weight in weights.items()
        ),
        curve=tuple(at(float(n)) for n in np.logspace(5, 7.5, 12)),
        extrapolation=(
            Extrapolation(parameters=3e7, at=at(3e7), beyond=8.8, verdict="far"),
            Extrapolation(parameters=3.4e8, at=None, beyond=100.0, verdict="too far"),
        ),
    )  # fmt: skip


def _by_size() -> BySize:
    return BySize(
        best_rate=_law("best rate", "fixed", 0.22, 0.06),
        gap=_law("gap", "accumulated − fixed 15 %", 0.12, 0.05),
    )


def _kpi() -> KpiReport:
    def row(predictor: str, statistic: str, value: float) -> Correlation:
        return Correlation(predictor=predictor, statistic=statistic, value=value,
                           low=value - 0.2, high=min(1.0, value + 0.1))  # fmt: skip

    return KpiReport(
        name="mypackage.kpi:downstream", trials=10, failed=1,
        correlations=(row("lml", "spearman", 0.88), row("lml", "kendall", 0.74),
                      row("loss", "spearman", 0.31), row("loss", "kendall", 0.22)),
        difference=0.52, difference_low=0.11, difference_high=0.87, better="lml", certain=True,
        best_trial=7,
    )  # fmt: skip
