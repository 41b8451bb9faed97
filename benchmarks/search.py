"""How much training does a search need until it recommends a policy that is as good as the best?

    python benchmarks/search.py --quick                        # under 2 minutes
    python benchmarks/search.py --json all.json                # 200 replays a cell; an hour
    python benchmarks/search.py --data text --methods tpe,gp --first 100 --replays 50 --json b.json
    python benchmarks/search.py --merge a.json b.json          # the table of runs that were split
    python benchmarks/search.py --predict                      # unseen policies after 12 trials
    python benchmarks/search.py --ask                          # seconds of a proposal

Methods choose among the 62 policies of the bed (`benchmarks/bed/`), which are real trainings; a
policy that is chosen again is trained with another seed. A replay draws its trainings anew: score
and curve are the policy's mean over the seeds of the bed plus a normal error with the covariance
that they have over these seeds; so the truth, that mean, is known exactly and is in no run. The
first principal component of the errors is one number for all trainings of a seed, as in the bed;
the other ones are each training's own: six seeds say nothing of how these depend on each other.
`--held-out` replays the trainings themselves instead: one seed of the six, another one in every
replay, is the truth, and only the other five can be run. One seed is a noisy truth: regret is then
right on average, and the share within delta is not.

Every method begins with the same four policies, runs one training at a time, and is judged by the
same rule, which is mptune's (`mptune.analysis.selection`): of the policies with a finished run, the
one with the highest posterior mean, or the highest score while no policy has two runs. Delta is
the larger of one nat per sequence and half a standard deviation of the difference of two seeds,
of what they do to one policy only, pooled over the ten best.

How a peer is offered 62 policies: TPE proposes kind, parameters, reduction, corruption and
structure, and the nearest policy of the bed by exposure runs and is what it is told of. Optuna's
Gaussian process takes no conditional parameters, so it gets three numbers that every policy has
(mean mask rate early and late, and spread), and the three choices. Random search draws policies.
The regression is RegMix's idea: after 12 runs, ridge regression on the log exposure of ten bands
chooses the predicted best each time. Pruners see the rungs of the bed; a pruned run costs what it
has trained, and is no candidate.

Shape suffixes: P policies, R seeds, T rungs, G bands, F budgets, A candidates, C columns of seeds.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import optuna
from numpy.typing import NDArray

import mptune
from mptune.analysis import exposure, learning
from mptune.analysis.exposure import Exposed, Points, Surrogate, distances
from mptune.analysis.learning import ScoredRun, evidence_of_runs
from mptune.analysis.moderation import SEED_SHARE, out_of_play
from mptune.analysis.outlook import of_unseen
from mptune.analysis.posterior import MeasuredPoints, draw_scores
from mptune.spec.schema import Search
from mptune.spec.space import Suggests
from mptune.study import exposure as sampling
from mptune.study.pruners import FreezeThawPruner
from mptune.study.records import JUDGED, JUDGED_BY, PAUSED, step_of
from mptune.study.samplers import make_sampler

Array = NDArray[np.float64]

BUDGETS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48)
"""At which recommendations are judged, in trainings of mean cost."""

START = (2, 13, 24, 50)
"""Fixed 15 %, uniform, beta(2, 5) and a falling rate, by their numbers in the bed."""

CERTAINTY = 0.95
"""At which a search ends by itself."""

CHOICES = ("reduction", "corruption", "structure")


class Run(NamedTuple):
    """A training of a replay: up to rung `rungs`, all of them unless it was pruned."""

    policy: int
    seed: int
    score_T: Array
    curve_G: Array
    rungs: int
    flops: float


@dataclass(frozen=True, eq=False)
class Table:
    """The bed of one kind of data at one size, with the policies that have two seeds or more."""

    name: str
    bed: mptune.bed.Bed
    size: int = 0

    @cached_property
    def scores(self) -> list[Array]:
        """Of each policy, [R, T]: the seeds that it was trained with."""
        return [lml_RT[np.isfinite(lml_RT[:, -1])] for lml_RT in self.bed.lml_PZRT[:, self.size]]

    @cached_property
    def curves(self) -> list[Array]:
        """Of each policy at the end, [R, G]."""
        curve_PRG = self.bed.curves_PZRTG[:, self.size, :, -1]
        return [curve_RG[np.isfinite(curve_RG).all(1)] for curve_RG in curve_PRG]

    @cached_property
    def costs(self) -> Array:
        """Training FLOPs until each rung, [P, T]; a training costs 1 on average."""
        flops_PT = self.bed.flops_PZRT[:, self.size, 0]
        found: Array = flops_PT / flops_PT[:, -1].mean()
        return found

    @cached_property
    def delta(self) -> float:
        best = sorted(self.scores, key=lambda lml_RT: -lml_RT[:, -1].mean())[:10]
        seeds = min(len(lml_RT) for lml_RT in best)
        end_AR = np.stack([lml_RT[:seeds, -1] for lml_RT in best])
        end_AR = end_AR - end_AR.mean(1, keepdims=True)
        end_AR = end_AR - end_AR.mean(0)
        sd = float(np.sqrt((end_AR**2).sum() / (len(best) - 1) / (seeds - 1)))
        return max(1 / self.bed.about["length"], sd * 0.5**0.5)

    @cached_property
    def common(self) -> Array:
        """What a seed does to all policies: the errors' first principal component, [R]."""
        most = max(len(lml_RT) for lml_RT in self.scores)
        end_PR = np.stack([lml_RT[:, -1] for lml_RT in self.scores if len(lml_RT) == most])
        error_PR = end_PR - end_PR.mean(1, keepdims=True)
        found: Array = np.linalg.svd(error_PR / error_PR.std(1, keepdims=True))[2][0]
        return found

    @cached_property
    def points(self) -> Points:
        length = self.bed.about["length"]
        return Points.of([Exposed.of({"policy": p}, length) for p in self.bed.policies])

    @cached_property
    def out_of_play(self) -> Array:
        """Of each policy, [P]."""
        return np.array([out_of_play(p, self.bed.about["length"]) for p in self.bed.policies])

    def choices(self, policy: Mapping[str, Any]) -> dict[str, str]:
        return {name: str(policy.get(name, "default")) for name in CHOICES}


@dataclass(frozen=True, eq=False)
class World:
    """What one replay may see, and the truth."""

    table: Table
    number: int
    held_out: bool

    @cached_property
    def truth(self) -> Array:
        """True score of each policy, [P]."""
        ends = [lml_RT[:, -1] for lml_RT in self.table.scores]
        if self.held_out:
            return np.array([end_R[self.number % len(end_R)] for end_R in ends])
        return np.array([end_R.mean() for end_R in ends])

    def train(self, policy: int, seed: int) -> tuple[Array, Array]:
        """Score at each rung [T] and curve at the end [G]."""
        lml_RT, curve_RG = self.table.scores[policy], self.table.curves[policy]
        seeds = len(lml_RT)
        if self.held_out:
            order_R = (self.number + 1 + np.arange(seeds - 1)) % seeds
            chosen = np.random.default_rng(self.number).permutation(order_R)[seed % (seeds - 1)]
            return lml_RT[chosen], curve_RG[chosen]
        common_R = self.table.common[:seeds] / np.linalg.norm(self.table.common[:seeds])
        own_R, all_R = (
            np.random.default_rng([self.number, seed, *which]).standard_normal(seeds)
            for which in ([policy], [])
        )
        weight_R = own_R + common_R * (common_R @ (all_R - own_R))
        weight_R /= np.sqrt(seeds - 1)
        mean_T, mean_G = lml_RT.mean(0), curve_RG.mean(0)
        return mean_T + weight_R @ (lml_RT - mean_T), mean_G + weight_R @ (curve_RG - mean_G)


class Method:
    """Proposes policies by number; this one at random. `pruner` may stop a training at a rung."""

    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    begins_with: Sequence[int] = START
    trials = float("inf")
    """Trainings that the search may use."""

    def __init__(self, table: Table, number: int) -> None:
        self.table, self.rng = table, np.random.default_rng([number, 1])
        self.study = optuna.create_study(
            direction="maximize", pruner=self.pruner, sampler=self.sampler(number)
        )

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    def params_of(self, policy: int) -> dict[str, Any]:
        return {"policy": policy}

    def define(self, trial: Any) -> int:
        """The policy of the bed that a trial's suggestions mean."""
        return int(trial.suggest_int("policy", 0, len(self.table.bed.policies) - 1))

    def ask(self, history: Sequence[Run]) -> int:
        return int(self.rng.integers(len(self.table.bed.policies)))

    def trial_of(self, policy: int) -> optuna.Trial:
        """The trial that stands for this policy in the study."""
        self.study.enqueue_trial(self.params_of(policy))
        trial = self.study.ask()
        self.define(trial)
        return trial

    def run(self, world: World, history: list[Run]) -> Run | None:
        n = len(history)
        policy = self.begins_with[n] if n < len(self.begins_with) else self.ask(history)
        seed = sum(run.policy == policy for run in history)
        trial = self.trial_of(policy)
        score_T, curve_G = world.train(policy, seed)
        rungs = len(score_T)
        for t, score in enumerate(score_T[:-1]):
            trial.report(float(score), step_of(self.table.bed.rungs[t]))
            if trial.should_prune():
                rungs = t + 1
                break
        self.tell(trial, score_T, curve_G, rungs)
        return Run(policy, seed, score_T, curve_G, rungs, self.table.costs[policy, rungs - 1])

    def tell(self, trial: optuna.Trial, score_T: Array, curve_G: Array, rungs: int) -> None:
        if rungs < len(score_T):
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, float(score_T[-1]))


class RandomHalving(Method):
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=12, reduction_factor=2)


class Tpe(Method):
    """Proposes kind, parameters and choices; runs the nearest policy by exposure."""

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return make_sampler(Search.model_validate({"sampler": {"kind": "tpe"}}), number)

    @cached_property
    def space(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Ranges of the numbers of each kind; policies of one kind have the same structure."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for policy in self.table.bed.policies:
            ranges = found.setdefault(kind_of(policy), {})
            for name, value in numbers(policy).items():
                low, high = ranges.get(name, (value, value))
                ranges[name] = min(low, value), max(high, value)
        return found

    def params_of(self, policy: int) -> dict[str, Any]:
        spec = self.table.bed.policies[policy]
        kind = kind_of(spec)
        own = {f"{kind}{name}": value for name, value in numbers(spec).items()}
        return {"kind": kind, **own, **self.table.choices(spec)}

    def define(self, trial: Any) -> int:
        kind = trial.suggest_categorical("kind", list(self.space))
        values = {
            name: trial.suggest_float(f"{kind}{name}", low, high)
            for name, (low, high) in self.space[kind].items()
            if low < high
        }
        chosen = self.suggest_choices(trial)
        policies = self.table.bed.policies
        example = next(p for p in policies if kind_of(p) == kind)
        example = {k: v for k, v in example.items() if k not in CHOICES}
        given = {k: v for k, v in chosen.items() if v != "default" and k == "reduction"}
        try:
            spec = with_numbers(example, values) | given
            seen = Exposed.of({"policy": spec}, self.table.bed.about["length"])
        except ValueError:  # bounds in the wrong order
            seen = None
        apart_P = np.zeros(len(policies))
        if seen is not None:
            apart_P = distances(Points.of([seen]), self.table.points)[0]
        for p, policy in enumerate(policies):
            others = self.table.choices(policy)
            apart_P[p] += sum(others[name] != value for name, value in chosen.items())
            apart_P[p] += (0.05 if seen else 1.0) * (kind_of(policy) != kind)
        return int(apart_P.argmin())

    def suggest_choices(self, trial: Any) -> dict[str, str]:
        options = {
            name: sorted({self.table.choices(p)[name] for p in self.table.bed.policies})
            for name in CHOICES
        }
        return {name: trial.suggest_categorical(name, o) for name, o in options.items()}

    def ask(self, history: Sequence[Run]) -> int:
        trial = self.study.ask()
        policy = self.define(trial)
        # A failed trial is none to Optuna: what ran is told as a trial of its own.
        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return policy


class TpeMedian(Tpe):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=49)


class TpeHyperband(Tpe):
    pruner = optuna.pruners.HyperbandPruner(min_resource=12, max_resource=100, reduction_factor=3)


class Gp(Tpe):
    """Three numbers that every policy has, and the choices."""

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=number, n_startup_trials=8)

    @cached_property
    def numbers(self) -> Array:
        """Early and late mean rate, and spread, of each policy [P, 3]; each from 0 to 1."""
        cdf_P2F = self.table.points.cdfs
        mean_P2 = 1 - cdf_P2F.mean(2)
        spread_P = (cdf_P2F * (1 - cdf_P2F)).mean((1, 2))
        found_P3 = np.column_stack([mean_P2, spread_P])
        low_3, high_3 = found_P3.min(0), found_P3.max(0)
        found: Array = (found_P3 - low_3) / (high_3 - low_3)
        return found

    def params_of(self, policy: int) -> dict[str, Any]:
        own = dict(zip(("early", "late", "spread"), self.numbers[policy].tolist(), strict=True))
        return {**own, **self.table.choices(self.table.bed.policies[policy])}

    def define(self, trial: Any) -> int:
        given_3 = [trial.suggest_float(name, 0.0, 1.0) for name in ("early", "late", "spread")]
        chosen = self.suggest_choices(trial)
        apart_P = np.sqrt(((self.numbers - given_3) ** 2).sum(1))
        for p, policy in enumerate(self.table.bed.policies):
            others = self.table.choices(policy)
            apart_P[p] += sum(others[name] != value for name, value in chosen.items())
        return int(apart_P.argmin())


class Regression(Method):
    """Ridge regression on exposures, its penalty by leave-one-out; greedy after 12 runs."""

    def ask(self, history: Sequence[Run]) -> int:
        if len(history) < 12:
            return super().ask(history)
        return int(self.predicted(history).argmax())

    def predicted(self, history: Sequence[Run]) -> Array:
        points = self.table.points
        x_PK = np.hstack([points.log_exposure(0.1, 4.0), points.context_NZ])
        x_PK = (x_PK - x_PK.mean(0)) / np.maximum(x_PK.std(0), 1e-9)
        x_NK = x_PK[[run.policy for run in history]]
        y_N = np.array([run.score_T[-1] for run in history])
        left_N = y_N - y_N.mean()
        best = np.inf, np.zeros(len(x_PK))
        for penalty in np.geomspace(0.1, 1000, 9):
            inverse_KK = np.linalg.inv(x_NK.T @ x_NK + penalty * np.eye(x_NK.shape[1]))
            fit_PN = x_PK @ inverse_KK @ x_NK.T
            own_N = (x_NK @ inverse_KK * x_NK).sum(1) + 1 / len(y_N)
            wrong_N = left_N - x_NK @ inverse_KK @ x_NK.T @ left_N
            error = float(((wrong_N / (1 - own_N)) ** 2).mean())
            if error < best[0]:
                best = error, fit_PN @ left_N
        return best[1]


class Exposure(Method):
    """`mptune.ExposureSampler`; its trials are the study's own."""

    begins_with = ()
    startup_trials = 8

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        policies, length = self.table.bed.policies, self.table.bed.about["length"]

        def define(trial: Suggests) -> dict[str, Any]:
            at = trial.suggest_int("policy", 0, len(policies) - 1, step=1, log=False)
            return {"policy": policies[at]}

        return mptune.ExposureSampler(
            define,
            length=length,
            margin=1 / length,
            seed=number,
            startup_trials=self.startup_trials,
        )

    def trial_of(self, policy: int) -> optuna.Trial:
        return self.trial

    def ask(self, history: Sequence[Run]) -> int:
        self.trial = self.study.ask()
        return self.define(self.trial)

    def tell(self, trial: optuna.Trial, score_T: Array, curve_G: Array, rungs: int) -> None:
        rate_G = (np.arange(len(curve_G)) + 0.5) / len(curve_G)
        trial.set_user_attr("curve", list(zip(rate_G.tolist(), curve_G.tolist(), strict=True)))
        super().tell(trial, score_T, curve_G, rungs)


class FreezeThaw(Exposure):
    """The default: the sampler also decides which trials are paused and go on."""

    startup_trials = 12

    def __init__(self, table: Table, number: int) -> None:
        super().__init__(table, number)
        self.pruner = self.study.pruner = FreezeThawPruner(self.study.sampler)
        self.paused: dict[int, tuple[optuna.Trial, Run]] = {}

    def run(self, world: World, history: list[Run]) -> Run | None:
        """As the search does it: the next run, None if the trainings are used."""
        ended = sum(run.rungs == len(run.score_T) for run in history)
        share_of = {n: t.user_attrs[JUDGED][-1]["progress"] for n, (t, _) in self.paused.items()}
        left = self.trials - ended - sum(share_of.values())
        able = [number for number, share in share_of.items() if left + share > 1 - 1e-6]
        may_ask = left > 1 - 1e-6
        found = self.pruner.to_continue(self.study, able, may_ask=may_ask) if able else None
        if found is None and not may_ask:
            return None
        if found is None:
            policy = self.ask(history)
            seed = len({run.seed for run in history if run.policy == policy})
            trial, run = self.trial, Run(policy, seed, *world.train(policy, seed), 0, 0.0)
        else:
            trial, run = self.paused.pop(found[0])
            trial.set_user_attr(JUDGED, [*trial.user_attrs[JUDGED], found[1]])
            trial.set_user_attr("reason", None)
            left += share_of[trial.number]
        judged_by = {"below": 10**6, "beside": [], "paused": {}, "left": left}
        trial.set_user_attr(JUDGED_BY, judged_by)
        rungs = len(run.score_T)
        for t in range(run.rungs, rungs - 1):
            trial.report(float(run.score_T[t]), step_of(self.table.bed.rungs[t]))
            if trial.should_prune():
                rungs = t + 1
                break
        flops_T = np.append(0.0, self.table.costs[run.policy])
        run = run._replace(rungs=rungs, flops=flops_T[rungs] - flops_T[run.rungs])
        if rungs < len(run.score_T):
            trial.set_user_attr("reason", PAUSED)
            self.paused[trial.number] = trial, run
        else:
            self.tell(trial, run.score_T, run.curve_G, rungs)
        return run


class WithoutStart(FreezeThaw):
    startup_trials = 0


class WithoutCurves(FreezeThaw):
    """A trial tells its score, not its score by mask rate."""

    def tell(self, trial: optuna.Trial, score_T: Array, curve_G: Array, rungs: int) -> None:
        super(Exposure, self).tell(trial, score_T, curve_G, rungs)


NO_LAW = dict.fromkeys(("b", "b_g", "c", "c_g"), 1e-6)

DRAWN = exposure.Settings.draws()


def with_settings(**values: float) -> tuple[Any, str, Any]:
    """What replaces the draws of the surrogate's settings: these have the same value in all."""
    drawn = [[replace(settings, **values) for settings in law] for law in DRAWN]
    return exposure.Settings, "draws", classmethod(lambda cls: drawn)


OFF: dict[str, tuple[Any, str, Any]] = {
    "exposure-law": (exposure, "PRIOR_SD", exposure.PRIOR_SD | NO_LAW),
    "exposure-bands": (exposure, "PRIOR_SD", exposure.PRIOR_SD | {"b_g": 1e-6, "c_g": 1e-6}),
    "exposure-squares": (exposure, "PRIOR_SD", exposure.PRIOR_SD | {"c": 1e-6, "c_g": 1e-6}),
    "exposure-recency": with_settings(recency=0.0),
    "exposure-reach": with_settings(h=0.13),
    "exposure-common": with_settings(common=1e-6),
    "exposure-process": (exposure, "_kernel", lambda squares, *_: np.zeros_like(squares)),
    "exposure-scale": (learning, "NEAR_QUANTILE", 1.0),
    "exposure-margin": (sampling, "NEW_MARGIN", 0.0),
    "exposure-usual": (sampling, "NEAR", -1.0),
    "exposure-seeds": (sampling, "MIN_FINISHED", 10**9),
    "exposure-six": (sampling, "MIN_FINISHED", 0),
}
"""Parts of the sampler that are turned off by another value of a module's attribute."""

METHODS: dict[str, type[Method]] = {
    "random": Method,
    "random+halving": RandomHalving,
    "tpe": Tpe,
    "tpe+median": TpeMedian,
    "tpe+hyperband": TpeHyperband,
    "gp": Gp,
    "regression": Regression,
    "exposure": FreezeThaw,
    "exposure-pausing": Exposure,
    "exposure-start": WithoutStart,
    "exposure-curves": WithoutCurves,
    **dict.fromkeys(OFF, FreezeThaw),
}


def kind_of(policy: Mapping[str, Any]) -> str:
    """Kind of a policy, with the kinds of its parts."""
    inner = [kind_of(p) for p in parts_of(policy) if isinstance(p, Mapping) and "kind" in p]
    return "/".join([policy["kind"], *inner]) + f".{policy.get('form', '')}"


def parts_of(policy: Any) -> Iterator[Any]:
    """All that is inside a policy."""
    for value in policy.values() if isinstance(policy, Mapping) else policy:
        if isinstance(value, Mapping | list):
            yield value
            yield from parts_of(value)


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """The numbers of a policy by their dotted names; a structure's are not the policy's."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {name: float(value)}
    if not isinstance(value, Mapping | list):
        return {}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, float] = {}
    for key, part in items:
        found |= numbers(part, f"{name}.{key}") if key not in CHOICES else {}
    return found


def with_numbers(value: Any, new: Mapping[str, float], name: str = "") -> Any:
    """The policy with other numbers."""
    if isinstance(value, Mapping):
        return {k: with_numbers(part, new, f"{name}.{k}") for k, part in value.items()}
    if isinstance(value, list):
        return [with_numbers(part, new, f"{name}.{k}") for k, part in enumerate(value)]
    return new.get(name, value)


# --- judging -----------------------------------------------------------------------------------


def judge(worlds: Sequence[World], histories: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """The recommendation of every replay at every budget, with what is stated and what is true."""
    rows: list[dict[str, Any]] = []
    by_count: dict[int, list[tuple[int, list[int], Array]]] = defaultdict(list)
    for world, history in zip(worlds, histories, strict=True):
        spent_N = np.cumsum([run.flops for run in history])
        for budget in BUDGETS:
            runs = [r for r, s in zip(history, spent_N, strict=True) if s <= budget + 0.5]
            if spent_N[-1] + 1.5 < budget:
                continue
            rows.append({"replay": world.number, "budget": budget, "runs": len(runs)})
            finished = [r for r in runs if r.rungs == len(r.score_T)]
            if not finished:
                rows[-1] |= {"regret": np.nan, "within": False, "policies": 0}
                continue
            policies = sorted({r.policy for r in finished})
            run_AC = np.full((len(policies), len(history)), np.nan)
            for r in finished:
                run_AC[policies.index(r.policy), r.seed] = r.score_T[-1]
            by_count[len(policies)].append((len(rows) - 1, policies, run_AC))
    table, of_replay = worlds[0].table, {world.number: world for world in worlds}
    for count, cases in by_count.items():
        width = 1 + max(int(np.isfinite(run_AC).any(0).nonzero()[0].max()) for *_, run_AC in cases)
        padded = [
            np.pad(r[:, :width], ((0, 0), (0, max(0, width - r.shape[1]))), constant_values=np.nan)
            for *_, r in cases
        ]
        run_BAC = np.stack(padded)
        repeated_B = (np.isfinite(run_BAC).sum(2) > 1).any(1)
        mean_BA, stated_B = np.nanmean(run_BAC, 2), np.full(len(cases), np.nan)
        # While no policy has two runs, its score decides.
        mean_BA[~repeated_B] = run_BAC[~repeated_B].max(
            2, initial=-np.inf, where=np.isfinite(run_BAC[~repeated_B])
        )
        if repeated_B.any():
            seen = MeasuredPoints(
                run_AC=run_BAC[repeated_B],
                plan_C=np.zeros(width, int),
                evaluation_AP=np.zeros((int(repeated_B.sum()), count, 2)),
                is_candidate_A=np.full(count, True),
                out_of_play_A=np.stack([table.out_of_play[p] for _, p, _ in cases])[repeated_B],
                shift=0.0,
            )
            theta_ZBA, _ = draw_scores(seen, chains=8, draws=50)
            mean_BA[repeated_B] = theta_ZBA.mean(0)
            chosen_B = mean_BA[repeated_B].argmax(1)
            of_chosen_ZB = theta_ZBA[:, np.arange(len(chosen_B)), chosen_B]
            near_ZB = of_chosen_ZB >= theta_ZBA.max(2) - table.delta
            stated_B[repeated_B] = near_ZB.mean(0)
        for (row, policies, _), mean_A, stated in zip(cases, mean_BA, stated_B, strict=True):
            truth_P = of_replay[rows[row]["replay"]].truth
            chosen = policies[int(mean_A.argmax())]
            rows[row] |= {
                "regret": float(truth_P.max() - truth_P[chosen]),
                "within": bool(truth_P[chosen] >= truth_P.max() - table.delta),
                "within_tried": bool(truth_P[chosen] >= truth_P[policies].max() - table.delta),
                "stated": None if np.isnan(stated) else float(stated),
                "policies": count,
            }
    return rows


def turned_off(method: str) -> AbstractContextManager[Any]:
    return patch.object(*OFF[method]) if method in OFF else nullcontext()


def replay(
    method: str, table: Table, first: int, count: int, budget: float, held_out: bool
) -> list[dict[str, Any]]:
    worlds = [World(table, number, held_out) for number in range(first, first + count)]
    histories = []
    began = time.process_time()
    with turned_off(method), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for world in worlds:
            made, history, spent = METHODS[method](table, world.number), list[Run](), 0.0
            made.trials = budget
            while spent < budget and (run := made.run(world, history)) is not None:
                history.append(run)
                spent += run.flops
            histories.append(history)
    seconds = (time.process_time() - began) / count
    rows = judge(worlds, histories)
    if method == "exposure":
        endings = [ending(*each) for each in zip(worlds, histories, strict=True)]
        rows += [
            {"replay": world.number, "ended": found}
            for world, found in zip(worlds, endings, strict=True)
        ]
    same = {"method": method, "data": table.name, "seconds": seconds}
    return [{**same, "length": table.bed.about["length"], **row} for row in rows]


def look(table: Table, history: Sequence[Run], number: int) -> dict[str, float] | None:
    """What a search states after these runs, as `mptune.analysis.outlook`; None: not yet known."""
    last = {(r.policy, r.seed): r for r in history}  # a run that went on replaces its beginning
    finished = [r for r in last.values() if r.rungs == len(r.score_T)]
    policies = sorted({r.policy for r in finished})
    run_AC = np.full((len(policies), 1 + max((r.seed for r in finished), default=0)), np.nan)
    for r in finished:
        run_AC[policies.index(r.policy), r.seed] = r.score_T[-1]
    if len(last) < FreezeThaw.startup_trials or not (np.isfinite(run_AC).sum(1) > 1).any():
        return None
    seen = MeasuredPoints(
        run_AC=run_AC,
        plan_C=np.zeros(run_AC.shape[1], int),
        evaluation_AP=np.zeros((len(policies), 2)),
        is_candidate_A=np.full(len(policies), True),
        out_of_play_A=table.out_of_play[policies],
        shift=0.0,
    )
    theta_ZA, variance_ZA = draw_scores(seen, chains=16, draws=50)
    chosen, nat = int(theta_ZA.mean(0).argmax()), 1 / table.bed.about["length"]
    seed_sd = float((1 / variance_ZA[:, chosen]).mean() ** -0.5)
    delta = max(nat, SEED_SHARE * seed_sd)
    within = float((theta_ZA.max(1) - theta_ZA[:, chosen] <= delta).mean())
    found = {"policy": policies[chosen], "delta": delta, "within": within, "stated": within}
    if within >= CERTAINTY:
        runs = []
        for r in last.values():
            score_T, is_finished = r.score_T.tolist(), r.rungs == len(r.score_T)
            rungs = dict(zip(table.bed.rungs, score_T[: r.rungs], strict=False))
            end = rungs.pop(1.0) if is_finished else None
            runs.append(ScoredRun(rungs, end, r.curve_G if is_finished else None, r.seed))
        evidence, _ = evidence_of_runs(table.points.take([p for p, _ in last]), runs, nat)
        unseen = [p for p in range(len(table.points)) if p not in policies]
        points = table.points.take([*unseen, policies[chosen]])
        rng = np.random.default_rng([number, len(history)])
        found["stated"] *= of_unseen(Surrogate.of(evidence), points, delta, rng)[0]
    return found


def ending(world: World, history: Sequence[Run]) -> dict[str, float]:
    """The look at which a search would have ended by itself, else the last one, and the truth."""
    found: dict[str, float] = {"stated": 0.0, "spent": 0.0}
    for n, run in enumerate(history, 1):
        seen = (
            look(world.table, history[:n], world.number) if run.rungs == len(run.score_T) else None
        )
        if seen is not None and found["stated"] < CERTAINTY:
            loss = float(world.truth.max() - world.truth[seen["policy"]])
            spent = sum(r.flops for r in history[:n])
            found = {**seen, "spent": spent, "is_right": loss <= seen["delta"]}
        if found["stated"] >= CERTAINTY:
            break
    return found


# --- tables ------------------------------------------------------------------------------------


def needed(rows: Sequence[Mapping[str, Any]], replays: Sequence[int]) -> float:
    """Trainings until 95 % of the replays recommend a policy within delta; infinite if none do."""
    at: dict[int, list[bool]] = defaultdict(list)
    by_replay: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_replay[row["replay"]].append(row)
    for number in replays:
        for row in by_replay[number]:
            at[row["budget"]].append(row["within"])
    share = {budget: float(np.mean(found)) for budget, found in sorted(at.items())}
    before, budgets = 0, list(share)
    for budget in budgets:
        if share[budget] >= 0.95:
            if budget == budgets[0]:
                return float(budget)
            low = share[before]
            return float(before + (budget - before) * (0.95 - low) / (share[budget] - low))
        before = budget
    return float("inf")


def show_parts(rows: Sequence[Mapping[str, Any]], data: str) -> None:
    """What each part of the sampler changes: paired differences of % within delta, off - on."""
    within: dict[str, dict[tuple[int, float], float]] = defaultdict(dict)
    for row in rows:
        if row["data"] == data and row["method"].startswith("exposure"):
            within[row["method"]][row["replay"], row["budget"]] = 100.0 * row["within"]
    on = within.pop("exposure", {})
    for method, off in within.items():
        cells = []
        for budget in sorted({b for _, b in off.keys() & on.keys()}):
            found = np.array([off[k] - on[k] for k in off.keys() & on.keys() if k[1] == budget])
            se = found.std(ddof=1) / len(found) ** 0.5
            cells.append(f"{budget}: {found.mean():+.0f} ± {se:.0f}")
        print(f"{method} - exposure, % within delta after trainings: {', '.join(cells)}")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of each kind of data, and calibration of what is stated."""
    endings = [row for row in rows if "ended" in row]
    rows = [row for row in rows if "ended" not in row]
    shown = [b for b in BUDGETS if b in (4, 6, 10, 16, 24, 32, 48)]
    for data in dict.fromkeys(row["data"] for row in rows):
        print(
            f"\n{data}: regret in nats per sequence / % within delta, after trainings of mean cost"
        )
        head = ["method", *map(str, shown), "until 95 %", "CPU s a replay"]
        print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
        until: dict[str, tuple[float, Array]] = {}
        for method in METHODS:
            own = [row for row in rows if row["data"] == data and row["method"] == method]
            if not own:
                continue
            cells = []
            for budget in shown:
                at = [row for row in own if row["budget"] == budget]
                regret = (
                    own[0]["length"] * np.nanmean([row["regret"] for row in at]) if at else np.nan
                )
                within = 100 * np.mean([row["within"] for row in at]) if at else np.nan
                cells.append(f"{regret:.2f} / {within:.0f}" if at else "")
            replays = sorted({row["replay"] for row in own})
            rng = np.random.default_rng(0)
            drawn = [needed(own, rng.choice(replays, len(replays))) for _ in range(100)]
            until[method] = needed(own, replays), np.array(drawn)
            low, high = np.quantile(until[method][1], [0.1, 0.9], method="nearest")
            cells.append(f"{until[method][0]:.1f} ({low:.1f}–{high:.1f})")
            print(f"| {method} | {' | '.join(cells)} | {own[0]['seconds']:.2f} |")
        show_parts(rows, data)
        others = {m: u for m, u in until.items() if not m.startswith("exposure")}
        if "exposure" in until and others:
            best = min(others, key=lambda m: others[m][0])
            with np.errstate(invalid="ignore"):
                ratio_B = until["exposure"][1] / others[best][1]
            low, high = np.quantile(ratio_B, [0.1, 0.9], method="nearest")
            ratio = until["exposure"][0] / others[best][0]
            print(f"exposure against {best}: {ratio:.2f} ({low:.2f}–{high:.2f}) of its trainings")
    stated = [row for row in rows if row.get("stated") is not None]
    ours = [row for row in stated if row["method"] == "exposure"]
    theirs = [row for row in stated if not row["method"].startswith("exposure")]
    print("\n% within delta where about as much is stated, of the policies tried:")
    for low, high in ((0.5, 0.8), (0.8, 0.9), (0.9, 0.93), (0.93, 0.97), (0.97, 1.01)):
        for group, found in (("exposure", ours), ("all others", theirs)):
            at = [row["within_tried"] for row in found if low <= row["stated"] < high]
            if at:
                share = f"{100 * np.mean(at):.0f} of {len(at)}"
                print(f"| {low:.2f}–{min(high, 1):.2f} | {group} | {share} |")
    print(f"\nexposure searches that would have ended by themselves, at {CERTAINTY}:")
    for data in dict.fromkeys(row["data"] for row in endings):
        every = [row["ended"] for row in endings if row["data"] == data]
        own = [found for found in every if found["stated"] >= CERTAINTY]
        if own:
            spent, stated, true = (
                np.mean([found[key] for found in own]) for key in ("spent", "stated", "is_right")
            )
            shares = f"stated {100 * stated:.0f} %, true {100 * true:.0f} %"
            print(f"| {data} | {len(own)} of {len(every)} | {spent:.1f} trainings | {shares} |")


def predict(tables: Sequence[Table], replays: int) -> None:
    """How predictions after 12 random trials agree with the true scores of all other policies.

    Correlation, rank correlation, that among those which are of the best 30, mean log density on
    the search's scale, and coverage of 95 % intervals; of a part that is turned off, the paired
    differences.
    """
    from scipy.stats import norm, spearmanr
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    def agreement(mean_N: Array, truth_N: Array, is_good_N: Any) -> list[float]:
        ranks = [spearmanr(mean_N[n], truth_N[n])[0] for n in (is_good_N | True, is_good_N)]
        return [np.corrcoef(mean_N, truth_N)[0, 1], *ranks]

    off = ("law", "bands", "squares", "reach", "recency", "process", "curves")
    for table in tables:
        method, found = Tpe(table, 0), defaultdict[str, list[list[float]]](list)
        params = [method.params_of(p) for p in range(len(table.bed.policies))]
        columns_PK = exposure._columns(params)
        for number in range(replays):
            world = World(table, number, False)
            order = np.random.default_rng(number).permutation(len(params))
            seen, unseen = order[:12], order[12:]
            made = [world.train(int(p), 0) for p in seen]
            y_N, curve_NG = np.array([s[-1] for s, _ in made]), np.array([c for _, c in made])
            ended = [ScoredRun({}, float(y), c) for y, c in zip(y_N, curve_NG, strict=True)]
            known, scale = evidence_of_runs(
                table.points.take(seen), ended, 1 / table.bed.about["length"]
            )
            truth_N, best = world.truth[unseen], scale.levels[None]
            scaled_N = best - scale.near * np.log1p(np.maximum((best - truth_N) / scale.near, -0.9))
            is_good_N = truth_N >= np.sort(world.truth)[-30]
            blind = replace(known, curve_NG=np.full_like(curve_NG, np.nan))
            for part in ("all", *off):
                with turned_off(f"exposure-{part}"):
                    surrogate = Surrogate.of(blind if part == "curves" else known)
                    mean_N, sd_N = surrogate.predict(table.points.take(unseen))
                density = norm.logpdf(scaled_N, mean_N, sd_N).mean() + np.log(known.scale)
                covered = (np.abs(scaled_N - mean_N) < 1.96 * sd_N).mean()
                found[part].append([*agreement(mean_N, truth_N, is_good_N), density, covered])
            runs = [Run(int(p), 0, s, c, len(s), 1.0) for p, (s, c) in zip(seen, made, strict=True)]
            ridge_N = Regression(table, 0).predicted(runs)[unseen]
            kernel = ConstantKernel() * Matern(nu=2.5) + WhiteKernel()
            process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs_N = process.fit(columns_PK[seen], y_N).predict(columns_PK[unseen])
            for name, mean_N in (("ridge regression", ridge_N), ("parameters", theirs_N)):
                found[name].append([*agreement(mean_N, truth_N, is_good_N), np.nan, np.nan])
        for name, rows in found.items():
            value = np.array(rows) - (np.array(found["all"]) if name in off else 0.0)
            se = value.std(0, ddof=1) / len(value) ** 0.5
            cells = [f"{v:+.2f} ± {s:.2f}" for v, s in zip(value.mean(0), se, strict=True)]
            print(f"| {table.name} | {name} | {' | '.join(cells)} |")


def ask() -> None:
    """CPU seconds of a proposal after 100, 300 and 1,000 trials of six dimensions."""

    def define(trial: Any) -> dict[str, Any]:
        kind = trial.suggest_categorical("kind", ["fixed", "beta", "linear"])
        names = {"fixed": ["rate"], "beta": ["a", "b"], "linear": ["start", "end"]}[kind]
        low, high = (0.5, 6.0) if kind == "beta" else (0.05, 0.9)
        values = {name: trial.suggest_float(name, low, high) for name in names}
        learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        return {"policy": {"kind": kind, **values}, "learning_rate": learning_rate}

    print("| trials | exposure | TPE |", "|---|---|---|", sep="\n")
    for count in (100, 300, 1000):
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        rng, seconds = np.random.default_rng(0), []
        for _ in range(count):
            trial = drawn.ask()
            define(trial)
            score_G = -2 - np.linspace(0, 1, 10) + 0.1 * rng.standard_normal(10)
            trial.set_user_attr("curve", [(g / 10 + 0.05, float(y)) for g, y in enumerate(score_G)])
            drawn.tell(trial, float(-score_G.mean()))
        for sampler in (mptune.ExposureSampler(define), make_sampler(Search(), 0)):
            drawn.sampler = sampler
            define(drawn.ask())  # reads the policies of all trials once
            began = time.process_time()
            define(drawn.ask())
            seconds.append(time.process_time() - began)
        print(f"| {count} | {seconds[0]:.2f} s | {seconds[1]:.2f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bed", type=Path, help="default: benchmarks/bed/bed.npz")
    parser.add_argument("--data", default="text,sensors,images")
    parser.add_argument("--size", type=int, default=0, help="0: S, 1: M, 2: L")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--budget", type=float, default=BUDGETS[-1], help="trainings")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", type=Path, nargs="+")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if given.merge:
        show([row for path in given.merge for row in json.loads(path.read_text())])
        return
    if given.ask:
        ask()
        return
    beds = mptune.bed.load(given.bed)
    tables = [Table(name, beds[name], given.size) for name in given.data.split(",")]
    if given.predict:
        predict(tables, given.replays)
        return
    methods, replays, budget = given.methods.split(","), given.replays, given.budget
    if given.quick:
        replays, budget, methods = 6, 16, [m for m in methods if m != "gp"]
    rows: list[dict[str, Any]] = []
    for table, method in product(tables, methods):
        rows += replay(method, table, given.first, replays, budget, given.held_out)
        if given.json:
            given.json.write_text(json.dumps(rows))
    show(rows)


if __name__ == "__main__":
    main()
