"""Is the comparison calibrated? Simulated arms with known differences and both noises.

    python benchmarks/comparison.py            # 500 replications of every cell; about 20 minutes
    python benchmarks/comparison.py --quick    # 12, to see that it runs
    python benchmarks/comparison.py --json comparison.json
    python benchmarks/comparison.py --only families --bed text --replications 2000

`families` are many arms with few training seeds, whose noise is normal, skewed, unequal, drawn from
the measured runs of docs/examples, or has runs that diverge. The old method is on the same data: a
t test of each pair, corrected by Holm. `crossed` varies the ratio of training to evaluation noise,
`looks` adds seeds until everything is decided, `reliability` is of the probability to be the best.

The unit of a difference is a seed SD: the root mean square over both arms of the SD of one run,
besides what a seed does to all arms alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr

from mptune.analysis.arms import (
    ArmScores,
    Difference,
    Errors,
    Pair,
    carrier,
    compare,
    joint_errors,
    of_two_arms,
    selection_probabilities,
    simultaneous,
)
from mptune.analysis.crossed import Array
from mptune.analysis.sequential import schedule

SEQUENCES, DRAWS = 32, 2048
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@dataclass(frozen=True)
class Bed:
    """Noise of the runs of a family whose arms are equal.

    Attributes:
        errors_AS: runs minus the true mean of their arm, nats per sequence.
        sd_A: standard deviation of a run of each arm, besides what arms share.
        out_of_play_A: of each arm's policy.
    """

    errors_AS: Array
    sd_A: Array
    out_of_play_A: Array


def normal(rng: np.random.Generator, arms: int, seeds: int, shared: float = 0.0) -> Bed:
    errors_AS = rng.normal(size=(arms, seeds)) + shared * rng.normal(size=(1, seeds))
    return Bed(errors_AS, np.ones(arms), np.zeros(arms))


def drawn(
    rng: np.random.Generator, arms: int, seeds: int, kind: str = "normal", **sds: float
) -> Bed:
    """Runs of one kind with mean 0 and variance 1, times an SD of each arm (`variances`)."""
    shape = arms, seeds
    if kind == "lognormal":
        errors_AS = (math.exp(0.5) - rng.lognormal(size=shape)) / math.sqrt((math.e - 1) * math.e)
    elif kind == "exponential":
        errors_AS = 1 - rng.exponential(size=shape)
    elif kind == "t with 3 degrees":
        errors_AS = rng.standard_t(3, shape) / math.sqrt(3)
    elif kind == "two modes":  # three in ten runs end 4 SDs lower
        errors_AS = 4 * (0.3 - (rng.random(shape) < 0.3)) + rng.normal(size=shape)
        errors_AS /= math.sqrt(1 + 16 * 0.3 * 0.7)
    else:
        errors_AS = rng.normal(size=shape)
    sd_A = np.sqrt(variances(arms, **sds))
    return Bed(sd_A[:, None] * errors_AS, sd_A, np.zeros(arms))


def variances(arms: int, baseline: float = 1.0, one: float = 1.0, half: float = 1.0) -> Array:
    """Variances of the baseline, the first challenger and every other challenger; the rest 1."""
    variance_A = np.where(np.arange(arms) % 2, half, 1.0)
    variance_A[1] *= one
    variance_A[0] = baseline
    return variance_A


def diverging(rng: np.random.Generator, arms: int, seeds: int, share: float, by: float) -> Bed:
    """Some runs end `by` standard deviations lower, but have a score."""
    diverged_AS = rng.random((arms, seeds)) < share
    errors_AS = rng.normal(size=(arms, seeds)) - by * (diverged_AS - share)
    return Bed(errors_AS, np.ones(arms), np.zeros(arms))


def two_kinds(rng: np.random.Generator, arms: int, seeds: int) -> Bed:
    """Log variances around 0 or log 20, each with an SD of ½; the baseline is of either kind."""
    log_A = np.log(20) * rng.integers(2, size=arms) + 0.5 * rng.normal(size=arms)
    sd_A = np.exp(log_A / 2)
    return Bed(sd_A[:, None] * rng.normal(size=(arms, seeds)), sd_A, np.zeros(arms))


def falling(rng: np.random.Generator, arms: int, seeds: int) -> Bed:
    """The better an arm, the quieter: the baseline is the worst, the last challenger the best."""
    sd_A = 20 ** (-np.linspace(0.0, 0.5, arms))
    return Bed(sd_A[:, None] * rng.normal(size=(arms, seeds)), sd_A, np.zeros(arms))


def late_support(rng: np.random.Generator, arms: int, seeds: int) -> Bed:
    """SDs of a measured search, nats at D = 64: 0.005 to 0.02 per token for laws that keep every
    mask count in play, 0.03 to 0.16 for the others; the baseline is one of the others."""
    out_of_play_A = (np.arange(arms) % 2 == 0).astype(float)
    low_A, high_A = np.where(out_of_play_A, 0.03, 0.005), np.where(out_of_play_A, 0.16, 0.02)
    sd_A = 64 * rng.uniform(low_A, high_A)
    return Bed(sd_A[:, None] * rng.normal(size=(arms, seeds)), sd_A, out_of_play_A)


@cache
def measured(study: str) -> list[Array]:
    """Scores of the runs of an example, fixed 15 % and accumulated, minus their means."""
    report = json.loads((EXAMPLES / study / "report.json").read_text(encoding="utf-8"))
    arms = report["input"]["comparison"]["arms"].values()
    runs = [[t["result"]["lml"]["nats_per_sequence"] for t in arm if t["result"]] for arm in arms]
    return [np.array(scores) - np.mean(scores) for scores in runs]


def pools(
    rng: np.random.Generator, arms: int, seeds: int, studies: Sequence[str], baseline: int = 0
) -> Bed:
    """Runs drawn from measured ones: arm a has the runs of pool a + baseline, all pools in turn.

    No run is drawn twice, as no seed is run twice. The mean of a pool of n runs is as uncertain as
    that of n runs, so each arm is moved by as much: errors then have the variance of fresh runs.
    Two arms of one study keep the pairs that were run with the same seed.
    """
    all_pools = [pool for study in studies for pool in measured(study)]
    pool_A = (np.arange(arms) + baseline) % len(all_pools)
    runs_AR = np.stack([all_pools[p] for p in pool_A])
    rows, n = 1 if arms == 2 else arms, runs_AR.shape[1]
    drawn_AS = rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)[:, :seeds]
    errors_AS = np.take_along_axis(runs_AR, np.broadcast_to(drawn_AS, (arms, seeds)), 1)
    moved_AR = runs_AR * rng.normal(size=(rows, n)) / math.sqrt(n * (n - 1))
    errors_AS = errors_AS + moved_AR.sum(1, keepdims=True)
    return Bed(errors_AS, runs_AR.std(1, ddof=1), 1.0 - pool_A % 2)


LACKING = "normal, every other challenger lacks a seed"
BEDS = {
    "text": partial(pools, studies=("text",)),
    "text, quiet baseline": partial(pools, studies=("text",), baseline=1),
    "watch": partial(pools, studies=("watch",), baseline=1),
    "watch, quiet baseline": partial(pools, studies=("watch",)),
    "late support": late_support,
    "normal": normal,
    "normal, seeds shared": partial(normal, shared=3.0),
    LACKING: normal,
    "baseline of 5-fold variance": partial(drawn, baseline=5.0),
    "baseline of 20-fold variance": partial(drawn, baseline=20.0),
    "baseline of 60-fold variance": partial(drawn, baseline=60.0),
    "baseline of a 60th of the variance": partial(drawn, baseline=1 / 60),
    "one challenger of 60-fold variance": partial(drawn, one=60.0),
    "half of the challengers of 60-fold variance": partial(drawn, half=60.0),
    "lognormal": partial(drawn, kind="lognormal"),
    "exponential": partial(drawn, kind="exponential"),
    "exponential, baseline of 20-fold variance": partial(drawn, kind="exponential", baseline=20.0),
    "t with 3 degrees": partial(drawn, kind="t with 3 degrees"),
    "two modes": partial(drawn, kind="two modes"),
    "5 % diverge by 30 SD": partial(diverging, share=0.05, by=30.0),
    "3 % diverge by 10 SD": partial(diverging, share=0.03, by=10.0),
    "log variances of two modes, 20-fold": two_kinds,
    "noise falls 20-fold with the mean": falling,
}


def family(
    rng: np.random.Generator, bed: str, arms: int, seeds: int
) -> tuple[list[ArmScores], Array]:
    """Equal arms with noise of evaluation, the baseline first, and the seed SD of each pair."""
    made = BEDS[bed](rng, arms, seeds)
    small = 0.05 * float(np.median(made.sd_A)) * math.sqrt(SEQUENCES)
    z_ASN = made.errors_AS[:, :, None] + 10 * rng.normal(size=(1, 1, SEQUENCES))
    z_ASN = z_ASN + small * rng.normal(size=(arms, seeds, SEQUENCES))
    scores = [
        ArmScores(str(a), z_SN, tuple(range(seeds)), 64.0, out_of_play=float(x))
        for a, (z_SN, x) in enumerate(zip(z_ASN, made.out_of_play_A, strict=True))
    ]
    if bed == LACKING:
        scores = [arm.first(seeds - a % 2) for a, arm in enumerate(scores)]
    return scores, np.sqrt((made.sd_A**2 + made.sd_A[0] ** 2) / 2)


def old_verdicts(d_K: Sequence[Array], by_K: Array) -> Array:
    """Sign of each difference that a t test of the pair finds, corrected by Holm, [K]."""
    d_KS = [d_SN.mean(1) + by for d_SN, by in zip(d_K, by_K, strict=True)]
    t_K = np.array([d_S.mean() / d_S.std(ddof=1) * math.sqrt(len(d_S)) for d_S in d_KS])
    p_K = 2 * stdtr([len(d_S) - 1 for d_S in d_KS], -np.abs(t_K))
    order_K = np.argsort(p_K)
    holm_K = np.empty(len(p_K))
    holm_K[order_K] = np.maximum.accumulate(p_K[order_K] * (len(p_K) - np.arange(len(p_K))))
    signs_K: Array = np.sign(t_K) * (holm_K <= 0.05)
    return signs_K


def new_verdicts(errors: Errors, d_K: Sequence[Array], by_K: Array) -> tuple[Array, Array, Array]:
    """Sign of each difference that `compare` finds, and if one seed may carry it; half-widths, [K].

    `errors` are of the arms as they are: moving them by `by_K` does not change their joint noise,
    whose estimate takes most of the time.
    """
    mean_K = np.array([d_SN.mean() for d_SN in d_K]) + by_K
    if len(d_K) > 1:
        found = simultaneous(errors, mean_K, 0.05)
    else:
        found = of_two_arms(errors, float(mean_K[0]), len(d_K[0]), 0.05)
    free_K = np.sign(mean_K) * (found.p_K <= 0.05)
    held_K = [
        carrier(d_SN.mean(1) + by, se) is None
        for d_SN, by, se in zip(d_K, by_K, errors.se, strict=True)
    ]
    return free_K * held_K, free_K, found.half_K


def signs(found: Sequence[Difference]) -> Array:
    """1 for better, -1 for worse, else 0, [K]."""
    return np.array([{"better": 1.0, "worse": -1.0}.get(d.verdict, 0.0) for d in found])


@dataclass(frozen=True)
class Family:
    """Percentages of replications.

    Attributes:
        old, new: families of equal arms with a wrong verdict.
        unchecked: the same of the new method, if a single seed may carry a verdict.
        old_power, new_power: challengers that are better by 3 seed SDs and are found to be, where
            all are.
        unchecked_power: the same if a single seed may carry a verdict.
        old_power_4, new_power_4: better by 3 SDs of a paired difference, 4.24 seed SDs.
        half_power: by 3 seed SDs, where every other challenger is.
        half_wrong: families of these with a wrong verdict.
        coverage: families of these whose intervals all contain the true difference.
    """

    bed: str
    challengers: int
    seeds: int
    old: float
    new: float
    unchecked: float
    old_power: float
    new_power: float
    unchecked_power: float
    old_power_4: float
    new_power_4: float
    half_power: float
    half_wrong: float
    coverage: float


def family_cell(
    bed: str, challengers: int, seeds: int, replications: int, stream: int = 0
) -> Family:
    rng = np.random.default_rng([*bed.encode(), challengers, seeds, stream])
    rows = []
    for _ in range(replications):
        arms, sd_A = family(rng, bed, challengers + 1, seeds)
        pairs = [Pair(a, a.seeds, a.nats_per_sequence_SN - arms[0].at(a.seeds)) for a in arms[1:]]
        d_K = [pair.d_SN for pair in pairs]
        errors = joint_errors(arms, pairs, DRAWS)
        row = []
        for times in (0.0, 3.0, 3.0 * math.sqrt(2)):
            old_K = old_verdicts(d_K, times * sd_A[1:])
            new_K, free_K, _ = new_verdicts(errors, d_K, times * sd_A[1:])
            row += [
                (each_K > 0).mean() if times else each_K.any() for each_K in (old_K, new_K, free_K)
            ]
        delta_K = 3.0 * sd_A[1:] * (np.arange(challengers) % 2 == 0)
        new_K, free_K, half_K = new_verdicts(errors, d_K, delta_K)
        missed_K = np.abs([d_SN.mean() for d_SN in d_K]) > half_K
        row[-1:] = [
            (new_K[::2] > 0).mean(),
            (new_K * np.sign(delta_K) < new_K**2).any(),
            not (missed_K | (free_K * np.sign(delta_K) < free_K**2)).any(),
        ]
        rows.append(row)
    shares = 100 * np.mean(np.array(rows, dtype=float), axis=0)
    return Family(bed, challengers, seeds, *(float(share) for share in shares))


def family_cells(beds: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Bed, challengers and seeds of every cell."""
    for bed in beds:
        yield from ((bed, challengers, 3) for challengers in (1, 2, 4, 31))
        if bed in ("text", "normal", "late support", "baseline of 20-fold variance"):
            yield from ((bed, challengers, seeds) for challengers in (1, 31) for seeds in (4, 5))


# --- both noises, crossed ------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossed:
    """Percentages of replications.

    Attributes:
        coverage: families whose 95 % intervals all contain the true difference.
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


def crossed_scores(
    rng: np.random.Generator, deltas_A: Array, seeds: int, ratio: float
) -> list[ArmScores]:
    """delta_a + seed_s + train_as + sequence_i + taste_ai + residual_asi.

    A difference has evaluation variance 4 / n + 2 / (S n); `ratio` times that comes from seeds.
    """
    n, A = 4 * SEQUENCES, len(deltas_A)
    train = math.sqrt(ratio * evaluation(seeds) * seeds / 2)
    z = deltas_A[:, None, None] + rng.normal(size=(1, seeds, 1)) + 3 * rng.normal(size=(1, 1, n))
    z = z + train * rng.normal(size=(A, seeds, 1)) + math.sqrt(2) * rng.normal(size=(A, 1, n))
    z = z + rng.normal(size=(A, seeds, n))
    return [ArmScores(str(a), z[a], tuple(range(seeds)), 1.0) for a in range(A)]


def evaluation(seeds: int) -> float:
    """Evaluation variance of a difference."""
    return (4 + 2 / seeds) / (4 * SEQUENCES)


def se(seeds: int, ratio: float) -> float:
    """True standard error of a difference."""
    return math.sqrt((1 + ratio) * evaluation(seeds))


def wrong(difference: Difference, delta: float) -> bool:
    """Whether the truth contradicts the verdict; it never contradicts undecided."""
    verdict = difference.verdict
    if verdict == "equivalent":
        return abs(delta) >= (difference.margin or 0.0) * (1 - 1e-9)
    return {"better": delta <= 0, "worse": delta >= 0}.get(verdict, False)


def crossed_cell(seeds: int, ratio: float, arms: int, replications: int) -> Crossed:
    rng = np.random.default_rng([seeds, round(100 * ratio), arms])
    mixed = np.array([0.0] + [3.0 * (k % 2) * (-1) ** (k // 2) for k in range(1, arms)])
    mixed *= se(seeds, ratio)
    rows, power = [], []
    for _ in range(replications):
        equal = crossed_scores(rng, 0 * mixed, seeds, ratio)
        null = compare(equal, "0", forecasts=False, draws=DRAWS)
        found = compare(
            crossed_scores(rng, mixed, seeds, ratio), "0", margin=3 * se(seeds, ratio),
            forecasts=False, draws=DRAWS,
        )  # fmt: skip
        pairs = list(zip(found, mixed[1:], strict=True))
        rows.append(
            [
                all(d.low <= delta <= d.high for d, delta in pairs),
                bool(signs(null).any()),
                any(wrong(d, delta) for d, delta in pairs),
            ]
        )
        power += [d.verdict == ("better" if delta > 0 else "worse") for d, delta in pairs if delta]
    shares = (100 * np.mean(np.array(rows, dtype=float), axis=0)).tolist()
    return Crossed(seeds, ratio, arms, *shares, power=100 * float(np.mean(power)))


CROSSED = list(itertools.product((2, 3, 8), (0.0, 1.0, 20.0), (2, 6)))


# --- looks, and the probability to be the best ---------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """Percentages of families with a wrong verdict if 3 to 12 seeds are used until all is decided.

    Attributes:
        corrected: with the levels of `mptune.analysis.sequential`.
        uncorrected: with 5 % at every look.
    """

    bed: str
    challengers: int
    corrected: float
    uncorrected: float


def looks_cell(bed: str, challengers: int, replications: int, stream: int = 0) -> Looks:
    rng = np.random.default_rng([*bed.encode(), challengers, stream])
    looks = schedule(3, 12)
    rows = []
    for _ in range(replications):
        arms, _ = family(rng, bed, challengers + 1, looks[-1])
        corrected = compare(arms, "0", looks=looks, forecasts=False, draws=DRAWS)
        naive = (
            signs(compare([a.first(k) for a in arms], "0", forecasts=False, draws=DRAWS)).any()
            for k in looks
        )
        rows.append([bool(signs(corrected).any()), any(naive)])
    shares = (100 * np.mean(np.array(rows, dtype=float), axis=0)).tolist()
    return Looks(bed, challengers, *shares)


LOOKS = list(itertools.product(("normal", "late support", "lognormal"), (1, 5)))


def reliability(replications: int) -> list[tuple[float, float, int]]:
    """(mean stated probability of being best, share that were, arms), by fifths of it."""
    rng = np.random.default_rng(1)
    stated, true = [], []
    for seeds, ratio, arms in CROSSED:
        for _ in range(replications):
            deltas = 4 * se(seeds, ratio) * rng.normal(size=arms)
            made = crossed_scores(rng, deltas, seeds, ratio)
            stated += [s.probability for s in selection_probabilities(made, draws=DRAWS)]
            true += [a == int(deltas.argmax()) for a in range(arms)]
    p, hit = np.array(stated), np.array(true)
    fifths = np.minimum((5 * p).astype(int), 4)
    return [
        (float(p[fifths == k].mean()), float(hit[fifths == k].mean()), int((fifths == k).sum()))
        for k in range(5)
        if (fifths == k).any()
    ]


# --- tables --------------------------------------------------------------------------------------


def table(rows: Iterator[Any], titles: Sequence[str]) -> Iterator[str]:
    """Rows as Markdown, each as soon as it is measured."""
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        cells = row if isinstance(row, tuple) else asdict(row).values()
        yield (
            "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"
        )


FAMILY_TITLES = (
    "noise of runs", "challengers", "seeds", "type-I, old", "type-I, new", "one seed may carry it",
    "power at 3 seed SDs, old", "new", "one seed may carry it", "power at 4.24, old", "new",
    "every other one: power at 3", "type-I", "all intervals cover",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="12 replications instead of 500")
    parser.add_argument("--replications", type=int, metavar="N", help="replications of every cell")
    parser.add_argument(
        "--only", choices=["families", "crossed", "looks", "reliability"], help="one table"
    )
    parser.add_argument("--bed", action="append", choices=list(BEDS), help="of the families")
    parser.add_argument("--challengers", type=int, action="append", help="of the families")
    parser.add_argument("--stream", type=int, default=0, help="of random numbers; for repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    given = parser.parse_args()
    R = given.replications or (12 if given.quick else 500)
    found: dict[str, list[Any]] = {}

    def kept(name: str, rows: Iterator[Any]) -> Iterator[Any]:
        for row in rows:
            found.setdefault(name, []).append(row if isinstance(row, tuple) else asdict(row))
            yield row

    cells = [
        cell
        for cell in family_cells(given.bed or list(BEDS))
        if not given.challengers or cell[1] in given.challengers
    ]
    parts: dict[str, tuple[Iterator[Any], Sequence[str]]] = {
        "families": ((family_cell(*at, R, given.stream) for at in cells), FAMILY_TITLES),
        "crossed": (
            (crossed_cell(*at, R) for at in CROSSED),
            ("seeds", "noise ratio", "arms", "all intervals cover", "type-I", "wrong with margin",
             "power at 3 se"),
        ),
        "looks": (
            (looks_cell(*at, R, given.stream) for at in LOOKS),
            ("noise of runs", "challengers", "type-I, 3 to 12 seeds", "uncorrected"),
        ),
        "reliability": (
            iter(reliability(max(2, R // 10)) if given.only in (None, "reliability") else ()),
            ("stated probability of being best", "share that were", "arms"),
        ),
    }  # fmt: skip
    print(f"{R} replications of each cell; percent.")
    for name, (rows, titles) in parts.items():
        if given.only in (None, name):
            print(f"\n{name}\n")
            for line in table(kept(name, rows), titles):
                print(line, flush=True)
    if given.json:
        given.json.write_text(json.dumps({"replications": R, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
