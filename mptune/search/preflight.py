"""Before a run: notes on a valid spec, a dry run, memory refusals, and what the run will cost."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mptune import dispatch
from mptune.dispatch import devices
from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError, input_errors, plural
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory
from mptune.search.arms import LADDER, RATE, most_ladder_runs
from mptune.search.budget import describe_shares, planned_runs, total_budget
from mptune.search.ledger import Work
from mptune.search.stage import Stage
from mptune.spec.schema import MODEL_KEYS, Resources, Score, SearchSpec, build
from mptune.spec.source import SpecFile, SpecSource
from mptune.tools.prepare import prepare_table
from mptune.trial import (
    Device,
    Failed,
    Finished,
    GangChanged,
    Prepared,
    PrepareRequest,
    Rung,
    StageName,
    Stopped,
    TrialSpec,
)

FEW_STEPS = 50
"""A training of fewer optimizer steps is likely to be a mistake."""

MANY_EPOCHS = 50
"""More passes over the training data than this are likely to be a mistake."""

STATE_BYTES = 12
"""Bytes per parameter of a checkpoint: the weight and Adam's two moments in single precision."""

PRODUCT = 512
"""Rows and columns of the matrices that are multiplied to find the speed of this machine."""

LAUNCHES = 3.0
"""Times that a whole training is started where trials are paused (benchmarks/plan.py)."""

COMMAND_S, PROPOSAL_S = 5.0, 0.5
"""Processor time of this command and of its report, and of one proposal of the sampler exposure
(2.8 GHz; benchmarks/plan.py)."""

WARM = 0.2
"""Progress of a measured training from which on its steps are as fast as later ones."""

TOGETHER = 8
"""Most gangs that are measured beside each other."""

LONGEST_S = 30 * 86400.0
"""A run that takes longer is likely to be meant for another machine."""

PAUSING = ("freeze_thaw", "predictive")
"""Pruners that pause trials, which use up `search.trials` by parts."""


def notes(file: SpecFile, spec: SearchSpec) -> list[str]:
    """Advice on a valid spec, one line each."""
    dimensions, training, found = file.dimensions, spec.training, []
    sizes = any(name.split(".")[0] == "model" for name in dimensions)
    chosen = (RATE, "training.optimizer.width_rule", "training.optimizer", "training")
    open_rate = training.optimizer.width_rule == "none" and dimensions.keys().isdisjoint(chosen)
    if sizes and open_rate:
        found.append(
            f"{RATE} {training.optimizer.learning_rate:g} is the same for every size, so size and "
            "learning rate are confounded; make it a dimension"
            + (
                ""
                if {*MODEL_KEYS} & {*spec.model}
                else ", or set training.optimizer.width_rule: mup"
            )
        )
    of_policy = any(name.split(".")[0] == "policy" for name in dimensions)
    if spec.search.sampler.kind == "exposure" and dimensions and not of_policy:
        found.append(
            "no dimension of the policy is searched, so Optuna's TPE proposes; with "
            "search.sampler: {kind: tpe}, trials report at one rung instead of four"
        )
    silent = "precision" not in training.model_fields_set
    if spec.resources.gpus_per_worker and training.precision == "fp32" and silent:
        found.append(
            "training.precision is fp32, its default; bf16 or auto is several times faster on GPUs"
        )
    on_cpus = not any(gang.gpus_per_worker for gang in spec.resources.gangs())
    if on_cpus and devices.has_gpus() and (gpus := devices.gpus()):
        found.append(
            f"resources.gpus_per_worker is 0, so trials train on the CPU; this machine has "
            f"{plural(len(gpus), 'GPU')} ({gpus[0].name})"
        )
    data = build("data", spec.data)
    steps = (training.budget_tokens or math.inf) / (training.batch_size * data.length)
    if steps < FEW_STEPS:
        number = max(1, math.ceil(steps))
        found.append(
            f"training.budget_tokens {training.budget_tokens:g} is "
            f"{plural(number, 'optimizer step')} of {training.batch_size} x {data.length} positions"
        )
    return found


def inspect_data(file: SpecFile, spec: SearchSpec) -> dict[str, Any]:
    """Prepare the data and describe them, with all warnings; see `Modality.inspect`.

    Raises:
        InputError: the data are missing or broken.
    """
    modality = build("data", spec.data).resolved(file.path.absolute().parent)
    with input_errors(f"{file.origin_of('data')}: data: "):
        report: dict[str, Any] = modality.inspect(modality.prepare(cache_directory() / "tables"))
    report["warnings"] += data_warnings(spec, report)
    return report


def data_warnings(spec: SearchSpec, report: dict[str, Any]) -> Iterator[str]:
    """What the spec asks of the data that the data does not have.

    Args:
        report: of the modality's `inspect`.
    """
    heldout = report["splits"]["heldout"]["sequences"]
    if spec.score.sequences > heldout:
        yield f"score.sequences is {spec.score.sequences}, but {heldout} are held out; all are used"
    passes = (spec.training.budget_tokens or 0) / (
        report["splits"]["train"]["sequences"] * report["length"]
    )
    if passes > MANY_EPOCHS:
        yield f"training.budget_tokens makes {passes:.0f} passes over the training data"


def dry_run(file: SpecFile, spec: SearchSpec, searching: bool) -> Iterator[str]:
    """The runs of `search`, or without `searching` of `compare`, as lines of text."""
    search, comparison, resources = spec.search, spec.compare, spec.resources
    yield f"{spec.name}: {build('data', spec.data).words()}"
    if searching:
        yield (
            f"  search: {plural(search.trials, 'trial')} over "
            f"{plural(len(file.dimensions), 'dimension')} "
            f"({search.sampler.kind}, pruner {search.pruning}); "
            f"named arms: {', '.join(search.arms) or 'none'}"
        )
        if search.confirm.top:
            confirm = search.confirm
            seeds = plural(confirm.seeds, "fresh seed")
            yield f"  confirmation: {plural(confirm.top, 'trial')} x {seeds}"
    if comparison is not None:
        count, most = len(comparison.arms), comparison.max_seeds
        more = f", up to {count * most} while undecided" if most else ""
        if ladder := most_ladder_runs(file, comparison):
            yield (
                f"  ladder: up to {plural(ladder, 'run')}, {len(LADDER)} for each arm of the "
                "comparison whose learning rate is not known from the search"
            )
        runs = plural(count * comparison.seeds, "run")
        yield f"  comparison: {runs}{more}: {', '.join(comparison.arms)}"
    if searching and (shares := describe_shares(spec, most_ladder_runs(file, comparison))):
        yield f"  budgets: {shares}"
    yield (
        f"  workers of each trial: {resources.workers}; CPUs of each worker: "
        f"{resources.cpus_per_worker:g}, GPUs: {resources.gpus_per_worker:g}"
    )


def refuse_misfits(file: SpecFile, spec: SearchSpec, address: str | None) -> None:
    """Raise if the spec has gangs that the cluster at `address`, or this machine, can never place.

    Raises:
        InputError: one line per such gang.
        DispatchError: the cluster cannot be reached.
    """
    if spec.resources.scale_up_timeout_s:
        return
    at = f"{file.origin_of('resources')}: resources"
    problems = [f"{at}: {why}" for why in dispatch.misfits(spec.resources, address)]
    if problems:
        raise InputError(problems)


def expected(
    file: SpecFile,
    spec: SearchSpec,
    address: str | None = None,
    *,
    local: bool = False,
    here: bool = True,
    searching: bool = True,
) -> dict[str, Any] | None:
    """What the runs will take, without training: the values of `plan`, as far as they are known.

    FLOPs and memory are the models' own sums, for every option and both ends of every range. Time,
    without a cluster and GPUs, is that of as many FLOPs in matrix products on this machine. The
    data are prepared if memory is checked: the vocabulary decides the size of a model. Otherwise
    it has the size that the spec implies, and what cannot be known then is None.

    Args:
        here: check memory on this machine; without it, and without `address`, only against
            `resources.memory_gb`.
        searching: whether the search runs, or the comparison only.

    Raises:
        InputError: no model fits, or the data are missing or broken.
        DispatchError: the cluster cannot be reached.
    """
    modality = build("data", spec.data)
    symbols, heldout = modality.expected_symbols(), spec.score.sequences
    exact = here or address is not None or spec.resources.memory_gb is not None
    if exact:
        with input_errors(f"{file.origin_of('data')}: ", InputError):
            base = file.path.absolute().parent
            table = prepare_table(spec.data, cache_directory() / "tables", base)
        symbols, heldout = table.vocabulary_size, min(heldout, len(table.heldout.tokens))
    elif any({*MODEL_KEYS} & {*probe.tree["model"]} for probe in file.probes()):
        return None  # only torch can count it
    prepared = _as_if_prepared(symbols, modality.length, heldout)
    try:
        kinds = _kinds(file, prepared, {}, RunDirectory(Path()))
    except InputError:
        if exact:
            raise
        return None  # no model of that size with this vocabulary
    with _devices(spec.resources, address, local, here) as device:
        models = [_row(trials, device(trials[0].resources), spec) for trials in kinds]
    refused = [model["why_not"] for model in models]
    if None not in refused:
        lines = dict.fromkeys(refused)
        raise InputError([f"{file.origin_of('model')}: model: {line}" for line in lines])
    on_gpus = any(gang.gpus_per_worker for gang in spec.resources.gangs())
    speed = None if address or on_gpus else matrix_flops_per_s()
    for model in models:
        if speed and model["flops"] and model["why_not"] is None:
            model["training_s"] = model["flops"] / speed
            model["trial_s"] = model["training_s"] + model["scoring_flops"] / speed
            model["setting_up_s"] = model["rung_s"] = model["save_s"] = 0.0
    found, machine = _totals(file, spec, models, 1, searching), devices.here(spec.resources)[1]
    most = max(model["memory_bytes"] for model in models)
    size = machine.bytes or math.inf
    if speed and not exact and most > size:
        found["warnings"].append(f"this machine has {memory.gigabytes(size)} of memory")
    return found | {"flops_per_s": speed, "symbols": None if exact else symbols}


def _as_if_prepared(symbols: int, length: int, heldout: int) -> Prepared:
    """Data of which no more is known than the size of a table."""
    return Prepared(
        table="",
        table_hash="",
        plan="",
        plan_hash="",
        vocabulary_size=symbols,
        length=length,
        train_sequences=0,
        heldout_sequences=heldout,
        heldout_tokens=0,
        bytes_per_token=None,
        description="",
    )


@contextmanager
def _devices(
    resources: Resources, address: str | None, local: bool, here: bool
) -> Iterator[Callable[[Resources], Device]]:
    """What tells the device of workers: of the cluster, of this machine, or as the spec says."""
    if address is not None or local:
        with closing(dispatch.make(resources, local=local, address=address)) as dispatcher:
            yield dispatcher.device
    elif here:
        node, machine = devices.here(resources)
        yield lambda gang: devices.device(gang, [node], {node.id: machine})
    else:
        yield lambda gang: devices.device(gang, [], {})


def matrix_flops_per_s() -> float:
    """The speed of this machine's matrix products in single precision, which training is below."""
    import numpy as np

    matrix, best_s = np.ones((PRODUCT, PRODUCT), np.float32), math.inf
    for _ in range(10):
        start = time.perf_counter()
        matrix @ matrix
        best_s = min(best_s, time.perf_counter() - start)
    return 2.0 * PRODUCT**3 / best_s


def plan(
    spec: SpecSource,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    local: bool = False,
    seconds: float = 5.0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train each model of a spec for some seconds, and predict what the whole run takes.

    Every model and batch size is measured at both ends of every range, on the workers that the run
    will have, in whole batches if a step of them fits in `seconds`; else the speed is a lower
    limit. Gangs without GPUs are measured as many at a time as will run. Scoring is measured on as
    many of the sequences as take about `seconds`. Nothing is written to a run directory.

    Args:
        spec, overrides, address, local: as of `mptune.search`.
        seconds: of training steps per model.
        say: called with a line for each measurement.

    Returns:
        The values of the text block `plan` in `mptune/cli/output.txt`: seconds, bytes and FLOPs.

    Raises:
        InputError, DispatchError: see `mptune.search`.
    """
    from mptune.search.application import Session, read_spec

    if not 0 < seconds < math.inf:
        raise InputError(f"seconds: {seconds:g} is not a length of time; give a positive number")
    file, whole = read_spec(spec, overrides)
    # The nodes of a cluster see the folder that run directories are in by default.
    at = None if address is None else Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mptune-plan-", dir=at) as folder:
        session, began = Session(file, whole, folder, address, local), time.monotonic()
        with closing(session.dispatcher()) as dispatcher:
            prepared, data = session.prepared(), session.data()
            starting_s = time.monotonic() - began
            at_once = dispatcher.capacity()
            at_once = max(1, min(at_once, whole.search.concurrency or at_once))
            on_gpus = any(gang.gpus_per_worker for gang in whole.resources.gangs())
            measuring = Measuring(dispatcher, 1 if on_gpus else min(TOGETHER, at_once), seconds)
            models = []
            for trials in _kinds(file, prepared, data, session.run.directory):
                say(f"measuring {trials[0].size_label} for {seconds:g} s")
                models.append(_model(trials, measuring, whole))
                # Models that are measured later find gangs that have started.
                starting_s += models[0]["starting_s"] or 0.0 if len(models) == 1 else 0.0
    command_s = starting_s + COMMAND_S
    if whole.search.sampler.kind == "exposure":
        launches = LAUNCHES if _pauses(whole, "search") else 1
        command_s += PROPOSAL_S * whole.search.trials * launches
    return _totals(file, whole, models, at_once, command_s=command_s)


def _totals(
    file: SpecFile,
    spec: SearchSpec,
    models: Sequence[dict[str, Any]],
    at_once: float,
    searching: bool = True,
    command_s: float = 0.0,
) -> dict[str, Any]:
    """All runs together, from what one run of each model takes.

    Args:
        command_s: that no run takes: until the first one is set up, and between them.
    """
    search, planned = spec.search, planned_runs(spec, most_ladder_runs(file, spec.compare))
    names = planned if searching else ("ladder", "comparison")
    runs = {name: count for name, count in planned.items() if count and name in names}
    total = sum(runs.values())
    known = [model for model in models if model["trial_s"] is not None]
    works, training_s, fixed_s = [0.0] * len(known), 0.0, command_s
    for stage, count in runs.items():
        rungs, launches = _rungs(spec, stage), LAUNCHES if _pauses(spec, stage) else 1.0
        rounds = math.ceil(count / at_once) / max(1, len(known))  # a stage ends with its last run
        for n, model in enumerate(known):
            pauses_s = (launches - 1) * model["save_s"]
            each_s = model["trial_s"] + rungs * model["rung_s"] + pauses_s
            works[n] += count * each_s * model["workers"]
            training_s += rounds * model["training_s"]
            fixed_s += rounds * (each_s - model["training_s"] + launches * model["setting_up_s"])
    flops = [total * model["flops"] for model in models if model["flops"] is not None]
    # Each trial that is paused keeps a checkpoint, and the one before it.
    pauses = search.pruning in PAUSING
    most_paused = search.trials / min(search.rungs, default=1.0) if pauses else 0.0
    checkpoints = 2 * STATE_BYTES * (at_once + most_paused)
    kept = 4 * spec.training.keep_weights * total
    disk_bytes = max(model["parameters"] for model in models) * (checkpoints + kept)
    free_bytes = shutil.disk_usage(Path()).free
    wall_s, warnings = training_s + fixed_s, []
    if works and wall_s > LONGEST_S:
        warnings.append(
            f"this would take about {wall_s / 86400:,.0f} days: give a smaller model, budget or "
            "number of trials, or a faster machine (--address, mptune launch)"
        )
    if disk_bytes > free_bytes and spec.storage.artifacts is None:
        warnings.append(f"this disk has {memory.gigabytes(free_bytes)} free")
    return {
        "name": spec.name,
        "models": models,
        "runs": runs,
        "at_once": at_once,
        "flops": [min(flops), max(flops)] if flops else None,
        "worker_s": [min(works), max(works)] if works else None,
        "wall_s": wall_s if works else None,
        "fixed_s": fixed_s if works else None,
        "disk_bytes": disk_bytes,
        "warnings": warnings,
        "pruner": search.pruning,
        "pauses": pauses,
        "limits": {
            f"search.{limit.key}": limit.most for limit in total_budget(spec).limits(Work())
        },
    }


def _kinds(
    file: SpecFile, prepared: Prepared, data: dict[str, Any], run: RunDirectory
) -> list[list[TrialSpec]]:
    """Trials of each kind that takes its own time; they differ in their policies."""
    found: dict[str, list[TrialSpec]] = {}
    stage = Stage("search", run, "", prepared, data, 0)
    for number, probe in enumerate(file.probes()):
        trial = stage.make(probe, number, 0)
        training = trial.training.model_dump(mode="json", exclude={"optimizer", "schedule"})
        key = json.dumps([trial.model, training], sort_keys=True)
        found.setdefault(key, []).append(trial)
    return list(found.values())


def _pauses(spec: SearchSpec, stage: StageName) -> bool:
    return stage == "search" and spec.search.pruning in PAUSING


def _rungs(spec: SearchSpec, stage: StageName) -> int:
    """Rungs of a run of this stage."""
    if stage == "search":
        return len(spec.search.rungs)
    of_comparison = spec.compare.rungs if spec.compare else ()
    return len(of_comparison) + bool(of_comparison) if stage == "comparison" else 0


def _row(trials: Sequence[TrialSpec], device: Device, spec: SearchSpec) -> dict[str, Any]:
    """What a trial of a kind takes, without its times; `why_not` where it does not fit.

    FLOPs are means over the policies of the trials.
    """
    trial, prepared = trials[0], trials[0].prepared
    training, workers = trial.training, trial.resources.workers
    sizes = memory.Sizes.of(trial, device.kind)
    length, vocabulary, family = sizes.length, sizes.vocabulary, sizes.family
    rates = [memory.Sizes.of(each, device.kind).masked_share for each in trials]
    positions = training.batch_size * length

    def per_token(masked_share: float) -> float:
        step = family.flops(
            vocabulary, length, training.batch_size, round(masked_share * positions)
        )
        return step / positions

    trained = sum(map(per_token, rates)) / len(rates)
    flops = training.budget_flops
    if training.budget_tokens is not None:
        flops = trained * training.budget_tokens
    # The counts of the score cover all of 1..D.
    forward = per_token(0.5) * family.forward_share(vocabulary, length) * length
    scored = prepared.heldout_sequences * _forwards(spec, spec.score)
    scored += len(spec.search.rungs) * _rung_forwards(spec, prepared)
    return {
        "model": trial.size_label,
        "parameters": family.parameters(vocabulary, length),
        "batch_size": training.batch_size,
        "workers": workers,
        "memory_bytes": memory.demand(sizes, training, workers).total,
        "device_bytes": device.bytes,
        "why_not": memory.refusal(trial, lambda resources: device),
        "flops_per_token": trained,
        "flops": flops,
        "scoring_flops": scored * forward,
        **dict.fromkeys(("tokens_per_s", "steps", "starting_s", "setting_up_s", "training_s")),
        **dict.fromkeys(("scoring_s", "rung_s", "save_s", "trial_s")),
    }


def _forwards(spec: SearchSpec, score: Score) -> int:
    """Forwards of each sequence in the score of a trained model; with `score.target_se` the most.

    A domain is taken to have as many sequences as the plan.
    """
    scores = 1 + len(spec.data.get("domains") or ()) + len(score.missing)
    rounds = 1 if score.target_se is None else max(1, score.max_forwards // score.forwards)
    return rounds * score.forwards * scores + len(score.rates)


def _rung_forwards(spec: SearchSpec, prepared: Prepared) -> int:
    """Forwards at a rung, of one sequence each."""
    return min(spec.score.rung_sequences, prepared.heldout_sequences) * spec.score.forwards


def _model(trials: Sequence[TrialSpec], measuring: Measuring, spec: SearchSpec) -> dict[str, Any]:
    """What a trial of a kind takes; its times are None where it does not fit or fails."""
    trial, seconds = trials[0], measuring.seconds
    training, prepared = trial.training, trial.prepared
    row = _row(trials, measuring.dispatcher.device(trial.resources), spec)
    if row["why_not"] is not None:
        return row
    # One sequence a step, as a whole batch may take long, and the checkpoint after them.
    once = {"budget_seconds": WARM * seconds, "checkpoint_every_s": WARM * seconds}
    alone = {"batch_size": row["workers"], "micro_batch_size": None, "keep_weights": False}
    first = measuring.run(trial, 2, once | alone)
    if isinstance(first, Failed):
        return row | {"why_not": first.detail}
    flops = seconds * first.flops / first.training_s
    share = min(1.0, flops / row["scoring_flops"])
    sequences = max(2, math.ceil(share * prepared.heldout_sequences))
    fields: dict[str, Any] = {"budget_seconds": seconds, "checkpoint_every_s": 1e9}
    # So that several steps fit.
    most = int(WARM * flops / (row["flops_per_token"] * prepared.length))
    batch_size = max(1, most // row["workers"]) * row["workers"]
    if batch_size < training.batch_size:
        fields |= {"batch_size": batch_size, "micro_batch_size": None}
    # What a score computes once for all trials is computed at the rung, after the first steps.
    found = measuring.run(trial.model_copy(update={"rungs": (WARM,)}), sequences, fields)
    if isinstance(found, Failed):
        return row | {"why_not": found.detail}
    flops_per_s, per_token = found.flops / found.training_s, row["flops_per_token"]
    flops = row["flops"] or (training.budget_seconds or 0) * flops_per_s
    training_s, every_s = flops / flops_per_s + found.warming_s, training.checkpoint_every_s
    forwards = sequences * _forwards(spec, _without_target(spec.score))
    forward_s = found.scoring_s / forwards
    scoring_s = forward_s * prepared.heldout_sequences * _forwards(spec, spec.score)
    saves_s = first.saving_s * (training_s // every_s)
    return row | {
        "tokens_per_s": flops_per_s / per_token,
        "flops": flops,
        "steps": flops / (per_token * training.batch_size * prepared.length),
        "starting_s": max(0.0, first.setting_up_s - found.setting_up_s),
        "setting_up_s": found.setting_up_s,
        "training_s": training_s,
        "scoring_s": scoring_s,
        "rung_s": forward_s * _rung_forwards(spec, prepared),
        "save_s": first.saving_s,
        "trial_s": training_s + saves_s + scoring_s + found.ending_s,
    }


def _without_target(score: Score) -> Score:
    return score.model_copy(update={"target_se": None})


class Times(NamedTuple):
    """Of a short trial, or means of several that ran at a time; seconds."""

    setting_up_s: float
    """From its submission to its first step."""
    warming_s: float
    """That its first steps took longer than others."""
    training_s: float
    """Of the steps after the rung, with their FLOPs; of all, without one."""
    flops: float
    saving_s: float
    """From its first step to its score, but for the training."""
    scoring_s: float
    ending_s: float
    """After its score."""


@dataclass
class Measuring:
    """Runs short trials.

    Attributes:
        beside: copies of each that run at a time.
        seconds: of a training.
    """

    dispatcher: Dispatcher
    beside: int
    seconds: float
    _prepared: dict[int, Prepared] = field(default_factory=dict)

    def run(self, trial: TrialSpec, sequences: int, fields: dict[str, Any]) -> Times | Failed:
        """Train with these fields of the training section, and score on so many sequences."""
        training = {"budget_tokens": None, "budget_flops": None, **fields}
        score = _without_target(trial.score).model_copy(update={"sequences": sequences})
        trial = trial.model_copy(
            update={
                "training": trial.training.model_copy(update=training),
                "score": score,
                "prepared": self._of(trial, score),
            }
        )
        copies = {
            n: trial.model_copy(update={"number": n, "directory": f"{trial.directory}-{n}"})
            for n in range(self.beside)
        }
        began, at, ended = time.monotonic(), dict[tuple[int, str], float](), dict[int, Any]()
        for copy in copies.values():
            self.dispatcher.submit(copy)
        while len(ended) < len(copies):
            for event in self.dispatcher.events(1.0):
                if isinstance(event, GangChanged):
                    continue
                at[event.number, event.type] = time.monotonic()
                if isinstance(event, Rung):
                    self.dispatcher.decide(event.number, True)
                elif isinstance(event, Stopped):  # its machine was taken away
                    self.dispatcher.submit(copies[event.number])
                elif isinstance(event, Finished | Failed):
                    ended[event.number] = event
        for event in ended.values():
            if isinstance(event, Failed):
                return event
        times = []
        for n, event in ended.items():
            cost, started, scoring = event.result.cost, at[n, "started"], at[n, "scoring"]
            training_s, flops, warming_s = cost.training_s, cost.flops, 0.0
            for point in event.result.learning:
                if point.flops < cost.flops:
                    training_s, flops = cost.training_s - point.seconds, cost.flops - point.flops
                    warming_s = max(0.0, point.seconds - point.flops * training_s / flops)
            saving_s = max(0.0, scoring - started - cost.training_s)
            ending_s = max(0.0, at[n, "finished"] - scoring - cost.scoring_s)
            times.append((started - began, warming_s, training_s, flops, saving_s,
                          cost.scoring_s, ending_s))  # fmt: skip
        return Times(*(sum(each) / len(times) for each in zip(*times, strict=True)))

    def _of(self, trial: TrialSpec, score: Score) -> Prepared:
        """The trial's data with a plan of as many sequences as the score has."""
        prepared, sequences = trial.prepared, score.sequences
        if sequences >= prepared.heldout_sequences:
            return prepared
        if sequences not in self._prepared:
            plan = Path(prepared.plan)
            request = PrepareRequest(
                data=trial.data,
                score=score,
                cache=str(cache_directory() / "tables"),
                plan=str(plan.with_name(f"{sequences}-{plan.name}")),
            )
            self._prepared[sequences] = self.dispatcher.prepare(request)
        return self._prepared[sequences]
