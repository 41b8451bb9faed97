"""Is a search right when it ends by itself? It looks after every run, which inflates certainty.

    python benchmarks/ending.py                          # 500 replications a cell; 40 minutes
    python benchmarks/ending.py --quick                  # 20
    python benchmarks/ending.py --json FILE

A search begins with 4 candidates of 2 seeds each. Then a new candidate and another seed of a
candidate, drawn as likely as it is the best (Thompson sampling), take turns; after every run the
posterior of `mptune.analysis.posterior` says P(recommended within delta of the best). The search
ends when this reaches 95 %, or after 40 runs. Truth is known. "Fixed" looks once, after 40 runs.

Unit: a seed standard deviation of the typical candidate. delta is half a standard deviation of the
difference between two seeds, as the search estimates it. Searches of real trainings that end by
themselves are in `benchmarks/search.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import SEED_SHARE
from mptune.analysis.posterior import MeasuredPoints, draw_scores

A, START, MOST, CERTAINTY = 14, 4, 40, 0.95
EVALUATION = 0.1**2
SPREADS = (0.5, 1.0, 2.0)
KINDS = ("normal", "60-fold variances", "skewed seeds", "two clusters")
CHAINS, DRAWS = 2, 300


class Truth(NamedTuple):
    """Of R replications and A candidates: true scores, and SEEDS scores of runs of each."""

    theta_RA: Array
    run_RAC: Array
    idle_RA: Array


def synthetic(rng: np.random.Generator, R: int, kind: str, spread: float) -> Truth:
    theta_RA = spread * rng.standard_normal((R, A))
    if kind == "two clusters":
        theta_RA = spread * (np.sign(theta_RA) + 0.2 * rng.standard_normal((R, A)))
    idle_RA, sd_RA = np.zeros((R, A)), np.ones((R, A))
    if kind == "60-fold variances":
        idle_RA = rng.permuted(np.tile(np.arange(A) % 2.0, (R, 1)), axis=1)
        sd_RA = 60 ** ((idle_RA - 0.5) / 2)
    noise_RAC = rng.standard_normal((R, A, MOST))
    if kind == "skewed seeds":  # minus a lognormal(1), of mean 0 and variance 1
        noise_RAC = (np.exp(0.5) - np.exp(noise_RAC)) / np.sqrt(np.exp(2) - np.exp(1))
    shared_RA = np.sqrt(EVALUATION) * rng.standard_normal((R, A, 1))
    return Truth(theta_RA, theta_RA[..., None] + sd_RA[..., None] * noise_RAC + shared_RA, idle_RA)


class Ended(NamedTuple):
    """When each search ended, what it stated, and whether it was right, [R]."""

    runs_R: Array
    stated_R: Array
    right_R: Array
    by_itself_R: Array


def search(rng: np.random.Generator, truth: Truth) -> dict[str, Ended]:
    """The same searches, that end by themselves and that look once at their end."""
    R, at_R = len(truth.theta_RA), np.arange(len(truth.theta_RA))
    count_RA = np.zeros((R, A), dtype=int)
    count_RA[:, :START] = 2
    begun = START
    own = Ended(*(np.zeros(R) for _ in range(4)))
    for runs in range(2 * START, MOST + 1):
        columns = np.arange(count_RA.max())
        seen_RAC = np.where(
            columns < count_RA[:, :begun, None], truth.run_RAC[:, :begun, : len(columns)], np.nan
        )
        seen = MeasuredPoints(
            run_AC=seen_RAC,
            plan_C=np.zeros(len(columns), dtype=int),
            evaluation_AP=np.full((R, begun, 2), EVALUATION),
            is_candidate_A=np.full(begun, True),
            out_of_play_A=truth.idle_RA[:, :begun],
            shift=0.0,
        )
        theta_ZRA, variance_ZRA = draw_scores(seen, CHAINS, DRAWS, seed=runs)
        chosen_R = theta_ZRA.mean(0).argmax(1)
        sd_RA = 1 / np.sqrt((1 / variance_ZRA).mean(0))
        delta_R = SEED_SHARE * sd_RA[at_R, chosen_R]
        stated_R = (theta_ZRA.max(2) - theta_ZRA[:, at_R, chosen_R] <= delta_R).mean(0)
        theta_RA = truth.theta_RA[:, :begun]
        right_R = theta_RA.max(1) - theta_RA[at_R, chosen_R] <= delta_R
        now = Ended(np.full(R, runs), stated_R, right_R, stated_R >= CERTAINTY)
        ends_R = (own.runs_R == 0) & (now.by_itself_R | (runs == MOST))
        for mine, values in zip(own, now, strict=True):
            mine[ends_R] = values[ends_R]
        if runs % 2 == 0 and begun < A:
            count_RA[:, begun] = 1
            begun += 1
        else:
            drawn_R = theta_ZRA[-1].argmax(1)
            count_RA[at_R, drawn_R] += 1
    return {"optional": own, "fixed": now}


def rows(made: Iterator[tuple[str, Truth]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for name, truth in made:
        for look, found in search(rng, truth).items():
            decided_R = found.by_itself_R > 0
            yield {
                "bed": name,
                "look": look,
                "searches": len(decided_R),
                "ended by themselves": float(decided_R.mean()),
                "runs": float(found.runs_R.mean()),
                "stated": float(found.stated_R[decided_R].mean()),
                "true": float(found.right_R[decided_R].mean()),
                "stated, all": float(found.stated_R.mean()),
                "true, all": float(found.right_R.mean()),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replications", type=int, default=500)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--spread", type=float, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng, R = np.random.default_rng(given.seed), 20 if given.quick else given.replications

    def made() -> Iterator[tuple[str, Truth]]:
        for kind in given.kind or KINDS:
            for spread in given.spread or SPREADS:
                yield f"{kind}, spread {spread:g}", synthetic(rng, R, kind, spread)

    found = []
    for row in rows(made(), rng):
        found.append(row)
        numbers = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        if len(found) == 1:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(numbers)} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
