"""Admission at scale, under simulated time, with the code of real searches.

    python benchmarks/scale.py [--quick] [--first-seed N] [--seeds N] [--load X ...] [--json FILE]

1,000 trials on gangs of 1, 2, 4, ..., 64 GPUs (one worker each, sizes equally frequent) on 512
nodes of 8 GPUs. They arrive at random (exponential gaps). The work that arrives in one hour would
keep the whole cluster busy for `load` hours. Durations are log-normal around a time that depends
on the gang's size. The predictor estimates that time from trials that end; single trials differ
from it by 20 %.

- mptune: `mptune.dispatch.admission.admit` with `mptune.search.forecast.Predictor`
- fcfs: plain first come, first served: no trial starts before the oldest one that does not fit
- greedy: no admission: every trial that fits starts, oldest first
- misled: mptune, but each prediction is off by a random factor of 1/2 to 2

Utilisation is GPU-seconds of work, divided by GPUs x time from the first arrival to the last end.
The rule was chosen on seeds 20 to 25; the default seeds are different ones.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).parents[1]))

from mptune.dispatch.admission import Decision, Retire, Start, WaitingTrial, admit
from mptune.dispatch.placement import ClusterNode, FreeResources, PlacedGang, Shape
from mptune.search.forecast import OVERDUE, Predictor
from mptune.spec.schema import Resources
from mptune.trial import TrialSpec
from tests import fakes

NODES = [ClusterNode(f"node-{n:03d}", 64, 8) for n in range(512)]
SIZES = (1, 2, 4, 8, 16, 32, 64)
LARGEST = SIZES[-1]
GPUS = sum(node.gpus for node in NODES)
HOUR_S = 3600.0

Policy = Callable[
    [Sequence[WaitingTrial], Sequence[PlacedGang], Sequence[ClusterNode], float], list[Decision]
]


@dataclass(frozen=True)
class Job:
    """One trial: when it arrives, what it needs, and how long it really takes."""

    trial: TrialSpec
    arrives: float
    lasts: float
    misled: float = 1.0
    """The factor by which its prediction is wrong."""

    @property
    def gpus(self) -> int:
        return self.trial.resources.workers


def jobs(seed: int, count: int, load: float, misled: float = 1.0) -> list[Job]:
    """The jobs of one seed. Predictions are wrong by up to the factor `misled`."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(SIZES, count)
    typical = dict(zip(SIZES, HOUR_S * rng.lognormal(0, 0.5, len(SIZES)), strict=True))
    lasts = np.array([typical[s] for s in sizes]) * rng.lognormal(0, 0.2, count)
    every = float((sizes * lasts).mean()) / (load * GPUS)
    arrives = np.cumsum(rng.exponential(every, count))
    off = misled ** rng.uniform(-1, 1, count)
    each = zip(sizes.tolist(), arrives.tolist(), lasts.tolist(), off.tolist(), strict=True)
    return [Job(trial(n, size), *times) for n, (size, *times) in enumerate(each)]


def trial(number: int, gpus: int) -> TrialSpec:
    """A trial on `gpus` workers of one GPU each. Its model's size follows the gang's size."""
    return fakes.trial(
        number, Path("nowhere"), model={"family": "fake", "width": 64 * gpus},
        resources=Resources(workers=gpus, cpus_per_worker=1, gpus_per_worker=1),
    )  # fmt: skip


def fcfs(
    queue: Sequence[WaitingTrial],
    held: Sequence[PlacedGang],
    total: Sequence[ClusterNode],
    now: float,
) -> list[Decision]:
    """Start trials in order, until one does not fit."""
    return _oldest_first(queue, held, total, stop=True)


def greedy(
    queue: Sequence[WaitingTrial],
    held: Sequence[PlacedGang],
    total: Sequence[ClusterNode],
    now: float,
) -> list[Decision]:
    """Start every trial that fits, oldest first."""
    return _oldest_first(queue, held, total, stop=False)


def _oldest_first(
    queue: Sequence[WaitingTrial],
    held: Sequence[PlacedGang],
    total: Sequence[ClusterNode],
    stop: bool,
) -> list[Decision]:
    room, started = FreeResources.of(total, held), list[Decision]()
    for waiting in queue:
        placement = room.place(waiting.shape)
        if placement:
            room.take(waiting.shape, placement)
            started.append(Start(waiting.number, placement=placement))
        elif stop:
            break
    return started


@dataclass
class Simulation:
    """The cluster, event by event. It carries out the decisions of a policy."""

    jobs: Sequence[Job]
    policy: Policy
    now: float = 0.0
    predictor: Predictor = field(default_factory=Predictor)
    predicted: dict[int, float | None] = field(default_factory=dict)
    """Seconds of a trial, by the size of its gang."""
    queue: dict[int, WaitingTrial] = field(default_factory=dict)
    held: dict[str, PlacedGang] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    events: list[tuple[float, str, int]] = field(default_factory=list)

    def run(self) -> Simulation:
        self.events = [(job.arrives, "", n) for n, job in enumerate(self.jobs)]
        heapq.heapify(self.events)
        while self.events:
            self.now, gang, number = heapq.heappop(self.events)
            self._end(gang, number) if gang else self._arrive(number)
            self._decide()
        assert len(self.started) == len(self.jobs), "everything ran"
        return self

    def _arrive(self, number: int) -> None:
        shape = Shape.of(self.jobs[number].trial.resources)
        seconds = self._seconds(number)
        self.queue[number] = WaitingTrial(number, shape, since=self.now, seconds=seconds)

    def _end(self, gang: str, number: int) -> None:
        job = self.jobs[number]
        result = fakes.result(job.trial)
        took = {"training_s": job.lasts, "total_s": job.lasts}
        cost = result.cost.model_copy(update=took)
        self.predictor.learn(job.trial, result.model_copy(update={"cost": cost}))
        self.predicted = {size: self.predictor.seconds(trial(0, size)) for size in SIZES}
        self.queue = {n: replace(w, seconds=self._seconds(n)) for n, w in self.queue.items()}
        ended = self.held.pop(gang)
        if self.policy is admit:  # the other policies have no warm gangs
            self.held[gang] = replace(ended, idle=True, ends=None)

    def _seconds(self, number: int) -> float | None:
        job = self.jobs[number]
        seconds = self.predicted.get(job.gpus)
        return None if seconds is None else seconds * job.misled

    def _decide(self) -> None:
        held = [self._seen(gang) for gang in self.held.values()]
        for decision in self.policy(list(self.queue.values()), held, NODES, self.now):
            if isinstance(decision, Retire):
                del self.held[decision.gang]
            elif isinstance(decision, Start):
                self._start(decision)

    def _seen(self, held: PlacedGang) -> PlacedGang:
        """The gang with its predicted end; an overdue one ends in a tenth of its delay."""
        if held.ends is None or held.ends > self.now:
            return held
        return replace(held, ends=self.now + OVERDUE * (self.now - held.ends))

    def _start(self, decision: Start) -> None:
        waiting, job = self.queue.pop(decision.number), self.jobs[decision.number]
        name = decision.gang or f"gang-{decision.number}"
        placement = decision.placement or self.held.pop(name).placement
        ends = None if waiting.seconds is None else self.now + waiting.seconds
        self.held[name] = PlacedGang(name, waiting.shape, placement, idle=False, ends=ends)
        self.started[decision.number] = self.now
        heapq.heappush(self.events, (self.now + job.lasts, name, decision.number))

    def figures(self) -> dict[str, float]:
        """Utilisation, waits in hours."""
        ends = [self.started[n] + job.lasts for n, job in enumerate(self.jobs)]
        waits = [self.started[n] - job.arrives for n, job in enumerate(self.jobs)]
        of_large = [w for w, job in zip(waits, self.jobs, strict=True) if job.gpus == LARGEST]
        work = sum(job.gpus * job.lasts for job in self.jobs)
        return {
            "busy_while_queued": self._busy_while_queued(),
            "utilisation": work / (GPUS * (max(ends) - self.jobs[0].arrives)),
            "longest_wait_64_h": max(of_large) / HOUR_S,
            "longest_wait_any_h": max(waits) / HOUR_S,
            "mean_wait_h": statistics.fmean(waits) / HOUR_S,
        }

    def _busy_while_queued(self) -> float:
        """Share of the GPUs that work, over all times at which a trial waits."""
        changes: list[tuple[float, int, int]] = []  # (time, more in the queue, more GPUs at work)
        for n, job in enumerate(self.jobs):
            start = self.started[n]
            changes += [
                (job.arrives, 1, 0),
                (start, -1, job.gpus),
                (start + job.lasts, 0, -job.gpus),
            ]
        changes.sort()
        waiting = busy = 0
        queued_s = busy_s = 0.0
        for (now, more, gpus), (then, _, _) in itertools.pairwise(changes):
            waiting, busy = waiting + more, busy + gpus
            if waiting:
                queued_s += then - now
                busy_s += busy * (then - now)
        return busy_s / (GPUS * queued_s) if queued_s else float("nan")


@dataclass(frozen=True)
class Side:
    """A policy, and by which factor its predictions are wrong."""

    policy: Policy
    misled: float = 1.0


SIDES = {
    "mptune": Side(admit),
    "fcfs": Side(fcfs),
    "greedy": Side(greedy),
    "misled": Side(admit, misled=2.0),
}


def simulate(name: str, seed: int, count: int, load: float) -> dict[str, float]:
    """The figures of one side on one seed, and the time of the simulation."""
    side, began = SIDES[name], time.process_time()
    done = Simulation(jobs(seed, count, load, side.misled), side.policy).run()
    return done.figures() | {"simulated_in_s": time.process_time() - began}


def measure(seeds: Sequence[int], count: int, load: float) -> dict[str, Any]:
    """The figures of every side, as lists in the order of the seeds."""
    found: dict[str, Any] = {"trials": count, "gpus": GPUS, "load": load, "seeds": list(seeds)}
    with Pool() as pool:
        for name in SIDES:
            runs = pool.starmap(simulate, [(name, seed, count, load) for seed in seeds])
            found[name] = {key: [run[key] for run in runs] for key in runs[0]}
    for name in ("mptune", "misled"):
        found[f"{name}_against_the_best"] = compare(found, name)
    return found


def compare(found: dict[str, Any], ours: str) -> dict[str, list[float]]:
    """The ratio of ours to the better of fcfs and greedy, for each seed."""

    def ratios(key: str, best: Callable[[float, float], float]) -> list[float]:
        each = zip(found[ours][key], found["fcfs"][key], found["greedy"][key], strict=True)
        return [a / best(b, c) for a, b, c in each if best(b, c) > 0]

    return {
        "utilisation": ratios("utilisation", max),
        "longest_wait_64_h": ratios("longest_wait_64_h", min),
    }


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the ratios, with a 95 % t interval over the seeds."""
    logs = np.log(ratios)
    if len(logs) < 2:
        return (float(np.exp(logs[0])), float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    middle = float(logs.mean())
    return tuple(float(np.exp(middle + x)) for x in (0.0, -half, half))  # type: ignore[return-value]


def show(found: dict[str, Any]) -> None:
    """Print the table of RESULTS.md."""
    seeds = found["seeds"]
    print(f"\n{found['trials']} trials, {GPUS:.0f} GPUs, load {found['load']:g}, "
          f"seeds {seeds[0]} to {seeds[-1]}: median (lowest to highest)\n")  # fmt: skip
    print(f"| | {' | '.join(SIDES)} |\n{'|---' * (len(SIDES) + 1)}|")
    for key in (key for key, values in found["mptune"].items() if isinstance(values, list)):
        print(f"| {key} | {' | '.join(_spread(found[name][key]) for name in SIDES)} |")
    print()
    for name in ("mptune", "misled"):
        for key, ratios in found[f"{name}_against_the_best"].items():
            mean, low, high = interval(ratios)
            print(
                f"{name} over the better of fcfs and greedy, {key}: geometric mean {mean:.3f} "
                f"(95 % {low:.3f} to {high:.3f}), each {' '.join(f'{r:.3f}' for r in ratios)}"
            )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, one load")
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--load", type=float, nargs="+", default=[1.2, 1.5])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    given = parser.parse_args()
    count, loads = (2, given.load[:1]) if given.quick else (given.seeds, given.load)
    seeds = range(given.first_seed, given.first_seed + count)
    found = []
    for load in loads:
        found.append(measure(seeds, given.trials, load))
        show(found[-1])
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
