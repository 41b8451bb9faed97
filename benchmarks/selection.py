"""Are P(best), expected regret and the corrected score of a search's winner true?

    python benchmarks/selection.py                       # 500 replications a cell; 15 minutes
    python benchmarks/selection.py --quick               # 20
    python benchmarks/selection.py --candidates 12 --json twelve.json
    python benchmarks/selection.py --merge a.json b.json # the tables of runs that were split
    python benchmarks/selection.py --pruner              # 2000 studies a correlation; 2 minutes

Candidates with known true scores are trained (simulated) with seeds of known noise, and some are
trained again. Beside the posterior of `mptune.analysis.posterior`, whose candidates lie in up to
three clusters, stands the one that it replaced, with one spread between all candidates. The bed
"outliers" was made to check the method, not to choose it.

Unit: a seed standard deviation (the geometric mean, where candidates differ). True P(best) of
equal candidates is one over their number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from mptune.analysis import posterior
from mptune.analysis.crossed import Array
from mptune.analysis.pruning import probability_of_stopping_the_best
from mptune.trial import LMLScore, Trial, TrialResult

SPREADS, CANDIDATES = (0.0, 0.5, 1.0, 2.0, 4.0), (2, 5, 12)
EVALUATION, SHIFT = 0.1**2, 0.3**2
"""Evaluation variance of a run, and of the difference in level between two plans."""


class Seeds(NamedTuple):
    """Runs of every candidate in the search, and fresh runs of the best of them."""

    each: int
    top: int = 0
    fresh: int = 0


PATTERNS = (Seeds(1, 3, 3), Seeds(2))
VARIANCES = ("equal", "60-fold", "60-fold, unexplained")
"""Half of the candidates are noisier; out of play says which, unless unexplained."""

CORRELATIONS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)
"""Of the scores at the rung and at the end."""

BEDS = (
    "normal", "seeds in common", "skewed seeds", "heavy-tailed spread", "two clusters", "outliers",
)  # fmt: skip


class Made(NamedTuple):
    """Simulated replications: true scores [R, A], what was seen, first scores [R, A]."""

    truth_RA: Array
    seen: posterior.MeasuredPoints
    first_RA: Array


def make(
    rng: np.random.Generator, R: int, A: int, spread: float, seeds: Seeds, variance: str, bed: str
) -> Made:
    noisy_RA = rng.permuted(np.tile(np.arange(A) % 2.0, (R, 1)), axis=1)
    sd_RA = np.ones((R, A)) if variance == "equal" else 60 ** ((noisy_RA - 0.5) / 2)
    truth_RA = spread * rng.standard_normal((R, A))
    if bed == "heavy-tailed spread":
        truth_RA = spread * rng.standard_t(2, (R, A)) / 1.5
    elif bed == "two clusters":
        truth_RA = spread * (np.sign(truth_RA) + 0.2 * rng.standard_normal((R, A)))
    elif bed == "outliers":
        low_RA = rng.random((R, A)) < 0.25
        truth_RA = np.where(low_RA, -spread * rng.uniform(2, 4, (R, A)), 0.25 * truth_RA)

    C = seeds.each + seeds.fresh
    noise_RAC = rng.standard_normal((R, A, C))
    if bed == "skewed seeds":  # minus a lognormal(1), of mean 0 and variance 1
        noise_RAC = (np.exp(0.5) - np.exp(noise_RAC)) / np.sqrt(np.exp(2) - np.exp(1))
    run_RAC = truth_RA[..., None] + sd_RA[..., None] * noise_RAC
    if bed == "seeds in common":  # half of the variance
        run_RAC = truth_RA[..., None] + np.sqrt(0.5) * (run_RAC - truth_RA[..., None])
        run_RAC += np.sqrt(0.5) * rng.standard_normal((R, 1, C))
    run_RAC[..., : seeds.each] += np.sqrt(EVALUATION) * rng.standard_normal((R, A, 1))
    run_RAC[..., seeds.each :] += np.sqrt(EVALUATION) * rng.standard_normal((R, A, 1))
    run_RAC[..., seeds.each :] += np.sqrt(SHIFT) * rng.standard_normal((R, 1, 1))
    mean_RA = run_RAC[..., : seeds.each].mean(2)
    again_RA = mean_RA.argsort(1).argsort(1) >= A - min(seeds.top, A)
    run_RAC[..., seeds.each :][~again_RA] = np.nan
    seen = posterior.MeasuredPoints(
        run_AC=run_RAC,
        plan_C=np.repeat([0, 1], [seeds.each, seeds.fresh]),
        evaluation_AP=np.full((R, A, 2), EVALUATION),
        is_candidate_A=np.full(A, True),
        out_of_play_A=noisy_RA if variance == "60-fold" else np.zeros((R, A)),
        shift=SHIFT,
    )
    return Made(truth_RA, seen, mean_RA)


class Stated(NamedTuple):
    """What a method says of R replications; the last three are of the candidate that it chooses."""

    probability_RA: Array
    chosen_R: Any
    regret_R: Array
    expected_R: Array
    half_width_R: Array


def of_draws(theta_ZRA: Array, mean_RA: Array, half_width_RA: Array) -> Stated:
    R, A = mean_RA.shape
    at_R, chosen_R = np.arange(R), mean_RA.argmax(1)
    probability_RA = (theta_ZRA.argmax(2)[..., None] == np.arange(A)).mean(0)
    regret_R = (theta_ZRA.max(2) - theta_ZRA[:, at_R, chosen_R]).mean(0)
    return Stated(
        probability_RA, chosen_R, regret_R,
        mean_RA[at_R, chosen_R], half_width_RA[at_R, chosen_R],
    )  # fmt: skip


def stated_by(made: Made) -> Stated:
    theta_ZRA, _ = posterior.draw_scores(made.seen, chains=1, draws=240)
    mean_RA = theta_ZRA.mean(0)
    return of_draws(theta_ZRA, mean_RA, np.quantile(np.abs(theta_ZRA - mean_RA), 0.95, axis=0))


def one_spread(made: Made) -> Stated:
    """The replaced prior: one cluster, whose spread has five times the scale."""
    with (
        mock.patch.object(posterior, "CLUSTERS", 1),
        mock.patch.object(posterior, "WITHIN", 1.0),
    ):
        return stated_by(made)


METHODS = {"one spread": one_spread, "clusters": stated_by}


def cell(
    A: int, spread: float, seeds: Seeds, variance: str, bed: str, replications: int
) -> Iterator[dict[str, Any]]:
    """One row for each method: sums over replications."""
    key = [A, round(10 * spread), *seeds, VARIANCES.index(variance), BEDS.index(bed)]
    made = make(np.random.default_rng(key), replications, A, spread, seeds, variance, bed)
    at_R = np.arange(replications)
    best_RA = (made.truth_RA.argmax(1)[:, None] == np.arange(A)).astype(float)
    if not spread:
        best_RA[:] = 1 / A
    for name, method in METHODS.items():
        said = method(made)
        decile_RA = np.minimum((10 * said.probability_RA).astype(int), 9)
        truth_R = made.truth_RA[at_R, said.chosen_R]
        yield {
            "method": name, "bed": bed, "candidates": A, "spread": spread, "seeds": list(seeds),
            "variance": variance, "replications": replications,
            "count": np.bincount(decile_RA.ravel(), minlength=10).tolist(),
            "stated": np.bincount(
                decile_RA.ravel(), said.probability_RA.ravel(), minlength=10).tolist(),
            "true": np.bincount(decile_RA.ravel(), best_RA.ravel(), minlength=10).tolist(),
            "stated_regret": float(said.regret_R.sum()),
            "true_regret": float((made.truth_RA.max(1) - truth_R).sum()),
            "covered": int((np.abs(truth_R - said.expected_R) <= said.half_width_R).sum()),
        }  # fmt: skip


def pruner(correlation: float, studies: int) -> tuple[float, float]:
    """Stated and true probability that a median pruner stopped the best of 12 trials.

    Trials are stopped from the fifth on if they are below the median of those before at the rung.
    """
    rng, n_S = np.random.default_rng(1), np.arange(12)
    stated, wrong = [], []
    for _ in range(studies):
        rung_S = rng.normal(size=12)
        final_S = correlation * rung_S + math.sqrt(1 - correlation**2) * rng.normal(size=12)
        stopped_S = [n >= 4 and rung_S[n] < np.median(rung_S[:n]) for n in n_S]
        trials = [
            Trial.model_construct(
                number=n, size_label="", rungs=((0.5, rung),), same_as=None,
                state="PRUNED" if stopped else "COMPLETE",
                result=None if stopped else TrialResult.model_construct(
                    lml=LMLScore.model_construct(nats_per_token=final)
                ),
            )
            for n, rung, final, stopped in zip(n_S, rung_S, final_S, stopped_S, strict=True)
        ]  # fmt: skip
        stated.append(probability_of_stopping_the_best(trials))
        wrong.append(stopped_S[int(final_S.argmax())])
    return float(np.nanmean(stated)), float(np.mean(wrong))


def pruner_table(studies: int) -> Iterator[str]:
    found = [pruner(correlation, studies) for correlation in CORRELATIONS]
    yield f"| correlation | {' | '.join(f'{c:g}' for c in CORRELATIONS)} |"
    yield "|---" * (1 + len(found)) + "|"
    for name, shares in zip(("stated", "true"), zip(*found, strict=True), strict=True):
        yield f"| {name} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |"


def tables(rows: list[dict[str, Any]], least: int = 100) -> Iterator[str]:
    """A line for each bed, variance and number of candidates, with the figures of both methods.

    The gap is over deciles with at least `least` values.
    """
    titles = ("gap", "regret", "coverage", "regret by spread")
    columns = [f"{method}: {title}" for method in METHODS for title in titles]
    yield "| bed; seed variances; candidates | " + " | ".join(columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    keys = dict.fromkeys((row["bed"], row["variance"], row["candidates"]) for row in rows)
    for bed, variance, A in keys:
        cells = [f"{bed}; {variance}; {A}"]
        for method in METHODS:
            at = {"bed": bed, "variance": variance, "candidates": A, "method": method}
            chosen = [row for row in rows if all(row[key] == at[key] for key in at)]
            total = {
                key: np.sum([row[key] for row in chosen], axis=0)
                for key in ("count", "stated", "true", "stated_regret", "true_regret", "covered")
            }
            enough = total["count"] >= least
            gap_10 = np.abs(total["stated"] - total["true"]) / np.maximum(total["count"], 1)
            by_spread = [
                sum(row["stated_regret"] for row in of) / sum(row["true_regret"] for row in of)
                for spread in SPREADS[1:]
                if (of := [row for row in chosen if row["spread"] == spread])
            ]
            cells += [
                f"{100 * gap_10[enough].max():.1f}",
                f"{total['stated_regret'] / total['true_regret']:.2f}",
                f"{100 * total['covered'] / sum(row['replications'] for row in chosen):.1f} %",
                ", ".join(f"{ratio:.2f}" for ratio in by_spread),
            ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 replications instead of 500")
    parser.add_argument(
        "--candidates", type=int, nargs="+", choices=CANDIDATES, default=CANDIDATES,
        help="numbers of candidates to measure",
    )  # fmt: skip
    parser.add_argument("--beds", nargs="+", choices=BEDS, default=BEDS, help="which to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells to FILE")
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE",
        help="show the tables of these cells; measure none",
    )  # fmt: skip
    parser.add_argument("--pruner", action="store_true", help="measure the pruner's error alone")
    arguments = parser.parse_args()
    if arguments.pruner:
        print(*pruner_table(100 if arguments.quick else 2000), sep="\n")
        return
    rows: list[dict[str, Any]] = []
    for file in arguments.merge or ():
        rows += json.loads(file.read_text(encoding="utf-8"))
    if not arguments.merge:
        replications = 20 if arguments.quick else 500
        for bed in arguments.beds:
            variances = VARIANCES if bed == "normal" else VARIANCES[1:2]
            grid = itertools.product(arguments.candidates, SPREADS, PATTERNS, variances)
            for A, spread, seeds, variance in grid:
                rows += cell(A, spread, seeds, variance, bed, replications)
    print(*tables(rows, 5 if arguments.quick else 100), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
