"""Do intervals of scores on other data, and of rank correlations with a KPI, cover?

    python benchmarks/transfer.py            # 500 replications of every cell; minutes
    python benchmarks/transfer.py --quick    # 20, to see that it runs
    python benchmarks/transfer.py --json transfer.json --beds domain normal-0.5 --trials 6

`domain` is the mean score of an arm over 64 sequences; one seed is a single trial. The other beds
are correlations, with Fisher's interval alone (old) and with the jackknife (new): two normal
variables; two sizes of a model that differ in both; Student's t with 1.5 degrees of freedom; a KPI
with which the score falls and then rises. Both scores of a trial are equally good, so that
"certain" is an error.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from scipy.stats import kendalltau, spearmanr

from mptune.analysis.intervals import Condition, scores_by_condition
from mptune.analysis.kpi import kpi_report
from mptune.trial import KpiValue, LMLScore, RateScore, Trial, TrialResult

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
TRIALS = (6, 12, 24)


def normal(rho: float) -> Draw:
    """KPI and two scores with this correlation."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kpi, a, b = rng.normal(size=(3, n))
        return kpi, rho * kpi + math.sqrt(1 - rho**2) * a, rho * kpi + math.sqrt(1 - rho**2) * b

    return draw


def sizes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kpi, a, b = rng.normal(size=(3, n)) + 3 * rng.integers(0, 2, n)
    return kpi, a, b


def heavy(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kpi, a, b = rng.standard_t(1.5, (3, n))
    return kpi, kpi + a, kpi + b


def curved(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kpi, a, b = rng.normal(size=(3, n))
    return kpi, kpi**2 + 0.3 * a, kpi**2 + 0.3 * b


BEDS: dict[str, Draw] = {
    "normal-0.5": normal(0.5),
    "normal-0.9": normal(0.9),
    "sizes": sizes,
    "heavy": heavy,
    "curved": curved,
}


def trials(kpi: np.ndarray, lml: np.ndarray, loss: np.ndarray) -> list[Trial]:
    found = []
    for number, (k, y, minus) in enumerate(zip(kpi, lml, loss, strict=True)):
        score = LMLScore.model_construct(nats_per_token=y)
        rate = RateScore.model_construct(rate=0.15, loss=-minus)
        result = TrialResult.model_construct(lml=score, rates=(rate,))
        found.append(Trial.model_construct(
            number=number, state="COMPLETE", result=result, kpi=KpiValue(value=k)
        ))  # fmt: skip
    return found


def cell(name: str, n: int, replications: int) -> dict[str, float | str]:
    """Percentages of intervals that cover, and of differences that are called certain."""
    kpi, lml, _ = BEDS[name](np.random.default_rng(0), 20_000)
    truth = {"spearman": spearmanr(kpi, lml).statistic, "kendall": kendalltau(kpi, lml).statistic}
    rng, rows = np.random.default_rng([n, *name.encode()]), []
    for _ in range(replications):
        report = kpi_report("kpi", trials(*BEDS[name](rng, n)))
        assert report is not None
        row = {"certain": float(report.certain)}
        for c in report.correlations:
            if c.predictor == "lml" and c.value is not None:
                true, r = truth[c.statistic], min(max(c.value, 1 / n**2 - 1), 1 - 1 / n**2)
                variance = (
                    (1 + r**2 / 2) / (n - 3) if c.statistic == "spearman" else 0.437 / (n - 4)
                )
                half = ndtri(0.975) * math.sqrt(variance)
                low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
                high = 1.0 if c.value == 1 else high
                row[f"{c.statistic}, old"] = float(low <= true <= high)
                row[f"{c.statistic}, old width"] = (high - low) / 100
                row[f"{c.statistic}, new"] = float((c.low or 0) <= true <= (c.high or 0))
                row[f"{c.statistic}, new width"] = ((c.high or 0) - (c.low or 0)) / 100
        rows.append(row)
    means = {key: 100 * float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"bed": name, "trials": n, "true tau": float(truth["kendall"]), **means}


def domain(seeds: int, ratio: float, replications: int) -> float:
    """Percentage of intervals of an arm that contain its mean over seeds and sequences.

    `ratio` is the standard deviation over seeds, divided by that of the evaluation.
    """
    rng, inside = np.random.default_rng([seeds, round(10 * ratio)]), 0
    for _ in range(replications):
        nats_SN = rng.normal(-9, 1, 64) + ratio / 8 * rng.normal(size=(seeds, 1))
        runs = []
        for nats_N in nats_SN:
            mean, se = float(nats_N.mean()), float(nats_N.std(ddof=1)) / 8
            score = LMLScore.model_construct(
                nats_per_sequence=mean,
                nats_per_token=mean,
                se_population=se,
                se_per_token=se,
                df_population=63.0,
            )
            result = TrialResult.model_construct(
                lml=score, lml_shift={"far": score}, lml_missing=()
            )
            runs.append(result)
        mean, half = scores_by_condition(runs)[Condition("domain", "far")]
        inside += abs(mean + 9) <= half
    return 100 * inside / replications


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="20 replications instead of 500")
    beds = ["domain", *BEDS]
    parser.add_argument("--beds", nargs="+", choices=beds, default=beds, help="which to measure")
    parser.add_argument("--trials", nargs="+", type=int, default=TRIALS, help="of a correlation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    options = parser.parse_args()
    cells: list[dict[str, float | str]] = []
    replications = 20 if options.quick else 500
    if "domain" in options.beds:
        print("| seeds | seed noise / evaluation noise: 0 | 0.5 | 1 | 2 | 4 |")
        print("|---|---|---|---|---|---|")
        for seeds in (1, 2, 3, 4):
            shares = [domain(seeds, ratio, replications) for ratio in (0, 0.5, 1, 2, 4)]
            cells += [{"bed": "domain", "seeds": seeds, "covered": share} for share in shares]
            print(f"| {seeds} | {' | '.join(f'{share:.0f}' for share in shares)} |")
    print("| bed | true τ | trials | Kendall, old | new | Spearman, old | new | certain, % |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [bed for bed in options.beds if bed in BEDS]:
        for n in options.trials:
            c = cell(name, n, replications)
            cells.append(c)
            parts = [
                f"{c[f'{s}, {m}']:.0f} ({c[f'{s}, {m} width']:.2f})"
                for s in ("kendall", "spearman")
                for m in ("old", "new")
            ]
            print(
                f"| {name} | {c['true tau']:.2f} | {n} | {' | '.join(parts)} | {c['certain']:.1f} |"
            )
    if options.json:
        options.json.write_text(json.dumps(cells, indent=1), "utf-8")


if __name__ == "__main__":
    main()
