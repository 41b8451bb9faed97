"""How often does a pruner stop the best policy, and how much training does it save?

    python benchmarks/stopping.py --quick                       # under 2 minutes
    python benchmarks/stopping.py --json all.json               # 200 replays a cell; 20 minutes
    python benchmarks/stopping.py --data text --pruners predictive --first 100 --replays 100
    python benchmarks/stopping.py --merge a.json b.json         # the table of runs that were split

A replay draws policies of a bed at random: four with two seeds each, and then
others with one. All pruners see the same trainings. A stopped training costs what it has trained;
the predictive pruner may let it go on. The best policy is the one with the best true score of those
that were begun; it is lost if each of its trainings was stopped.

Beds: `text`, `sensors`, `images` are real trainings (`benchmarks/bed/`): the truth is the mean over
seeds, and a training is that mean plus the deviation of a random training of the bed from its own
mean, at all rungs. In the others 60 policies have normal scores with a standard deviation of 1 and
seeds one of 0.3; the score at a rung has a given correlation with the end.

    nothing       the rungs say nothing of the end
    normal        correlations 0.5, 0.7, 0.85 and 0.95
    heavy         the same, but the error is Student's t with 3 degrees of freedom
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy import stats

import mptune
from mptune.study.pruners import PredictivePruner

RUNGS = (13, 25, 50, 75, 100)
TWICE = 4

PRUNERS: Mapping[str, Callable[[float], optuna.pruners.BasePruner]] = {
    "predictive": lambda margin: PredictivePruner(margin=margin),
    "median": lambda margin: optuna.pruners.MedianPruner(n_startup_trials=4),
    "hyperband": lambda margin: optuna.pruners.HyperbandPruner(min_resource=13, max_resource=100),
    "ASHA": lambda margin: optuna.pruners.SuccessiveHalvingPruner(min_resource=13),
}

SYNTHETIC = {
    "nothing": (0.0,) * 4,
    "normal": (0.5, 0.7, 0.85, 0.95),
    "heavy": (0.5, 0.7, 0.85, 0.95),
}


@dataclass(frozen=True, eq=False)
class Trainings:
    """What replays draw from: P policies, T rungs.

    Attributes:
        truth_P: score of each policy.
        draw: trainings of these policies, [n, T].
        cost_PT: until each rung.
        margin: one nat per sequence.
    """

    truth_P: np.ndarray[Any, Any]
    draw: Callable[[np.ndarray[Any, Any], np.random.Generator], np.ndarray[Any, Any]]
    cost_PT: np.ndarray[Any, Any]
    margin: float


def trainings(name: str, path: Path | None) -> Trainings:
    if name in SYNTHETIC:
        return synthetic(name)
    bed = mptune.bed.load(path)[name]
    lml_PRT = bed.lml_PZRT[:, 0]
    known_PR = np.isfinite(lml_PRT[..., -1])
    mean_PT, seeds_P = np.nanmean(lml_PRT, axis=1), known_PR.sum(1)
    scale_P = np.sqrt(seeds_P / np.maximum(1, seeds_P - 1))
    errors_ET = ((lml_PRT - mean_PT[:, None]) * scale_P[:, None, None])[
        known_PR & (seeds_P > 1)[:, None]
    ]

    def draw(policies: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        sign = rng.choice([-1.0, 1.0], (len(policies), 1))
        drawn = rng.integers(len(errors_ET), size=len(policies))
        curve: np.ndarray[Any, Any] = mean_PT[policies] + sign * errors_ET[drawn]
        return curve

    cost_PT = np.nanmean(bed.flops_PZRT[:, 0], axis=1)
    return Trainings(mean_PT[:, -1], draw, cost_PT, 1 / bed.about["length"])


def synthetic(name: str) -> Trainings:
    truth_P = np.random.default_rng(0).standard_normal(60)
    r_T, df = np.array([*SYNTHETIC[name], 1.0]), 3.0 if name == "heavy" else 1e6
    seed_sd = 0.3

    def draw(policies: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        end_N = truth_P[policies] + seed_sd * rng.standard_normal(len(policies))
        error_NT = rng.standard_t(df, (len(end_N), len(r_T))) / np.sqrt(df / (df - 2))
        curve: np.ndarray[Any, Any] = r_T * end_N[:, None] + np.sqrt(1 - r_T**2) * error_NT
        return curve

    cost_PT = np.tile(np.array(RUNGS) / 100, (len(truth_P), 1))
    return Trainings(truth_P, draw, cost_PT, 0.0)


def replay(of: Trainings, pruner: optuna.pruners.BasePruner, trials: int, number: int) -> Any:
    """(Best policy lost, the training that would have ended best lost, share of cost saved)."""
    rng = np.random.default_rng(number)
    chosen = rng.permutation(len(of.truth_P))[: trials - TWICE]
    policies = np.concatenate([np.repeat(chosen[:TWICE], 2), chosen[TWICE:]])
    curve_NT, cost_NT = of.draw(policies, rng), of.cost_PT[policies]
    study = optuna.create_study(direction="maximize", pruner=pruner)
    at_N = np.full(trials, -1)
    asked: list[optuna.Trial] = []

    def go_on(n: int) -> None:
        """Train until a rung at which it is stopped, or to the end."""
        for rung in range(at_N[n] + 1, len(RUNGS) - 1):
            at_N[n] = rung
            asked[n].report(curve_NT[n, rung], RUNGS[rung])
            if asked[n].should_prune():
                return
        at_N[n] = len(RUNGS) - 1
        study.tell(asked[n], curve_NT[n, -1])

    for n, policy in enumerate(policies):
        study.enqueue_trial({"policy": int(policy)})
        asked.append(study.ask())
        asked[n].suggest_int("policy", 0, len(of.truth_P) - 1)
        go_on(n)
        if isinstance(pruner, PredictivePruner):
            while (again := pruner.to_continue(study)) is not None:
                number, decision = again
                judged = [*asked[number].user_attrs["judged"], decision]
                asked[number].set_user_attr("judged", judged)
                go_on(number)
        elif at_N[n] < len(RUNGS) - 1:
            study.tell(asked[n], state=TrialState.PRUNED)
    finished_N = at_N == len(RUNGS) - 1
    best = policies[of.truth_P[policies].argmax()]
    saved = 1 - cost_NT[np.arange(trials), at_N].sum() / cost_NT[:, -1].sum()
    return not finished_N[policies == best].any(), not finished_N[curve_NT[:, -1].argmax()], saved


def table(cells: Mapping[str, list[Any]]) -> Iterator[str]:
    yield "| bed | pruner | replays | best policy stopped (upper 95 %) | best end stopped | saved |"
    yield "|---|---|---|---|---|---|"
    for cell, found in cells.items():
        lost, ended, saved = np.array(found, float).T
        n, k = len(lost), int(lost.sum())
        upper = stats.beta.ppf(0.95, k + 1, n - k) if k < n else 1.0
        yield (
            f"| {' | '.join(cell.split())} | {n} | {k / n:.1%} ({upper:.1%}) "
            f"| {ended.mean():.1%} | {saved.mean():.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bed", type=Path, help="default: benchmarks/bed/bed.npz")
    parser.add_argument("--data", default="text,sensors,images,nothing,normal,heavy")
    parser.add_argument("--pruners", default=",".join(PRUNERS))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="10 replays")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", type=Path, nargs="+")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    cells: dict[str, list[Any]] = {}
    for part in given.merge or ():
        for cell, found in json.loads(part.read_text()).items():
            cells.setdefault(cell, []).extend(found)
    numbers = range(given.first, given.first + (10 if given.quick else given.replays))
    for name in () if given.merge else given.data.split(","):
        of = trainings(name, given.bed)
        for pruner in given.pruners.split(","):
            make = PRUNERS[pruner]
            cells[f"{name} {pruner}"] = [
                [*map(float, replay(of, make(of.margin), given.trials, n))] for n in numbers
            ]
    print(*table(cells), sep="\n")
    if given.json:
        given.json.write_text(json.dumps(cells))


if __name__ == "__main__":
    main()
