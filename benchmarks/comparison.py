"""Is the comparison calibrated? Simulated arms with known differences and both noises.

    python benchmarks/comparison.py            # 500 replications of every cell; minutes
    python benchmarks/comparison.py --quick    # 60, to see that it runs
    python benchmarks/comparison.py --json comparison.json
    python benchmarks/comparison.py --cell 3,0.25,4 --cell 8,4,4 --replications 4000

A cell is a number of seeds, a noise ratio and a number of arms. With --cell only the given cells
are measured, with other random numbers: a cell that looked odd must not be measured again on the
numbers that made it look odd.

Score of arm a, seed s, sequence i (nats): delta_a + seed_s + train_as + sequence_i + taste_ai +
residual_asi. `ratio` is the variance of a difference that comes from training seeds, divided by
the variance that comes from evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mptune.analysis import ArmScores, Difference, compare, selection_probabilities
from mptune.analysis.crossed import Array
from mptune.analysis.sequential import schedule

SEEDS, RATIOS, ARMS = (2, 3, 5, 8), (0.0, 0.25, 1.0, 4.0, 20.0), (2, 4, 6)
SEQUENCES = 128


@dataclass(frozen=True)
class Cell:
    """Percentages of replications.

    Attributes:
        coverage: of the 95 % intervals, over all challengers.
        null: families without any difference in which at least one verdict is better or worse.
        mixed: families with and without differences, with a margin and a wrong verdict.
        power: challengers with a true difference of 3 standard errors and the right verdict.
    """

    seeds: int
    ratio: float
    arms: int
    coverage: float
    null: float
    mixed: float
    power: float


def scores(rng: np.random.Generator, deltas: Array, seeds: int, ratio: float) -> list[ArmScores]:
    """Scores of one study. The difference of two arms has evaluation variance 4 / n + 2 / (S n)."""
    n, A = SEQUENCES, len(deltas)
    train = math.sqrt(ratio * evaluation(seeds) * seeds / 2)
    z = deltas[:, None, None] + rng.normal(size=(1, seeds, 1)) + 3 * rng.normal(size=(1, 1, n))
    z = z + train * rng.normal(size=(A, seeds, 1)) + math.sqrt(2) * rng.normal(size=(A, 1, n))
    z = z + rng.normal(size=(A, seeds, n))
    return [ArmScores(str(a), z[a], tuple(range(seeds)), 1.0) for a in range(A)]


def evaluation(seeds: int) -> float:
    """Evaluation variance of a difference."""
    return 4 / SEQUENCES + 2 / (seeds * SEQUENCES)


def se(seeds: int, ratio: float) -> float:
    """True standard error of a difference."""
    return math.sqrt((1 + ratio) * evaluation(seeds))


def held(rng: np.random.Generator, deltas: Array, seeds: int, ratio: float) -> list[Difference]:
    margin = 3 * se(seeds, ratio)
    return compare(scores(rng, deltas, seeds, ratio), "0", margin=margin, forecasts=False)


def wrong(difference: Difference, delta: float) -> bool:
    """Whether the truth contradicts the verdict; it never contradicts undecided."""
    verdict = difference.verdict
    if verdict == "equivalent":
        return abs(delta) >= (difference.margin or 0.0) * (1 - 1e-9)
    return {"better": delta <= 0, "worse": delta >= 0}.get(verdict, False)


def cell(seeds: int, ratio: float, arms: int, replications: int, stream: int = 0) -> Cell:
    rng = np.random.default_rng([seeds, round(100 * ratio), arms, *([stream] if stream else [])])
    mixed = np.array([0.0] + [3.0 * (k % 2) * (-1) ** (k // 2) for k in range(1, arms)])
    mixed *= se(seeds, ratio)
    covered, null, wrongs, power = [], [], [], []
    for _ in range(replications):
        nothing = compare(scores(rng, 0 * mixed, seeds, ratio), "0", forecasts=False)
        null.append(any(d.verdict != "undecided" for d in nothing))
        found = held(rng, mixed, seeds, ratio)
        pairs = list(zip(found, mixed[1:], strict=True))
        wrongs.append(any(wrong(d, delta) for d, delta in pairs))
        covered += [d.low <= delta <= d.high for d, delta in pairs]
        covered += [d.low <= 0 <= d.high for d in nothing]
        power += [d.verdict == ("better" if delta > 0 else "worse") for d, delta in pairs if delta]
    shares = (100 * float(np.mean(x)) for x in (covered, null, wrongs, power))
    return Cell(seeds, ratio, arms, *shares)


def reliability(replications: int) -> list[tuple[float, float, int]]:
    """(mean stated probability of being best, share that were, arms), by fifths of it."""
    rng = np.random.default_rng(1)
    stated, true = [], []
    for seeds, ratio, arms in itertools.product(SEEDS, RATIOS, ARMS):
        for _ in range(replications):
            deltas = 4 * se(seeds, ratio) * rng.normal(size=arms)
            found = selection_probabilities(scores(rng, deltas, seeds, ratio), draws=1000)
            stated += [s.probability for s in found]
            true += [a == int(deltas.argmax()) for a in range(arms)]
    p, hit = np.array(stated), np.array(true)
    fifths = np.minimum((5 * p).astype(int), 4)
    return [
        (float(p[fifths == k].mean()), float(hit[fifths == k].mean()), int((fifths == k).sum()))
        for k in range(5)
    ]


def growing(arms: int, ratio: float, replications: int) -> dict[str, float]:
    """Type-I error in percent if 3 to 12 seeds are used, until everything is decided."""
    rng = np.random.default_rng([arms, round(100 * ratio)])
    looks = schedule(3, 12)
    corrected, naive = [], []
    for _ in range(replications):
        made = scores(rng, np.zeros(arms), looks[-1], ratio)
        corrected.append(any(_stopped(made, look, looks) for look in looks))
        naive.append(any(_stopped(made, look, ()) for look in looks))
    return {
        "arms": arms,
        "ratio": ratio,
        "corrected": 100 * float(np.mean(corrected)),
        "uncorrected": 100 * float(np.mean(naive)),
    }


def _stopped(made: list[ArmScores], look: int, looks: tuple[int, ...]) -> bool:
    """Whether a verdict other than undecided is given at this look, although all arms are equal."""
    seen = [ArmScores(a.name, a.nats_per_sequence_SN[:look], a.seeds[:look], 1.0) for a in made]
    return any(d.verdict != "undecided" for d in compare(seen, "0", looks=looks, forecasts=False))


def cell_table(cells: list[Cell], replications: int) -> Iterator[str]:
    """Cells as a table in Markdown."""
    yield f"{replications} replications per cell, {SEQUENCES} sequences; percent."
    yield ""
    yield (
        "| seeds | noise ratio | arms | coverage of 95 % | family-wise error, no difference |"
        " family-wise error, mixed with margin | decided rightly at 3 se |"
    )
    yield "|---|---|---|---|---|---|---|"
    for c in cells:
        yield (
            f"| {c.seeds} | {c.ratio:g} | {c.arms} | {c.coverage:.1f} | {c.null:.1f} | "
            f"{c.mixed:.1f} | {c.power:.0f} |"
        )


def tables(replications: int) -> Iterator[str]:
    """The results as Markdown."""
    cells = [cell(*at, replications) for at in itertools.product(SEEDS, RATIOS, ARMS)]
    yield from cell_table(cells, replications)
    yield ""
    yield "| stated probability of being best | share that were | arms |"
    yield "|---|---|---|"
    for stated, true, count in reliability(max(10, replications // 10)):
        yield f"| {stated:.3f} | {true:.3f} | {count} |"
    yield ""
    yield "| arms | noise ratio | family-wise error, 3 to 12 seeds | uncorrected |"
    yield "|---|---|---|---|"
    for arms, ratio in itertools.product((2, 4), RATIOS):
        g = growing(arms, ratio, replications)
        yield f"| {arms} | {ratio:g} | {g['corrected']:.1f} | {g['uncorrected']:.1f} |"


def everything(replications: int) -> dict[str, Any]:
    """All results."""
    return {
        "replications": replications,
        "cells": [asdict(cell(*at, replications)) for at in itertools.product(SEEDS, RATIOS, ARMS)],
        "reliability": reliability(max(10, replications // 10)),
        "growing": [growing(*at, replications) for at in itertools.product((2, 4), RATIOS)],
    }


def cell_named(words: str) -> tuple[int, float, int]:
    """Parse `3,0.25,4` as seeds, noise ratio and arms."""
    seeds, ratio, arms = words.split(",")
    return int(seeds), float(ratio), int(arms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="60 replications instead of 500")
    parser.add_argument("--replications", type=int, metavar="N", help="replications of every cell")
    parser.add_argument("--cell", type=cell_named, action="append", metavar="SEEDS,RATIO,ARMS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    given = parser.parse_args()
    replications = given.replications or (60 if given.quick else 500)
    if given.cell:
        cells = [cell(*at, replications, stream=1) for at in given.cell]
        lines, found = cell_table(cells, replications), {"cells": [asdict(c) for c in cells]}
    elif given.json:
        lines, found = iter(()), everything(replications)
    else:
        lines, found = tables(replications), {}
    for line in lines:
        print(line, flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
