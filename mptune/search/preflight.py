"""Before a run: notes on a valid spec, a dry run, memory refusals, and what the run will cost."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from mptune.spec.schema import MODEL_KEYS, Resources, SearchSpec, build
from mptune.spec.source import SpecFile, SpecSource
from mptune.tools.prepare import prepare_table
from mptune.trial import Device, Failed, Finished, Prepared, Stopped, TrialResult, TrialSpec

FEW_STEPS = 50
"""A training of fewer optimizer steps is likely to be a mistake."""

MANY_EPOCHS = 50
"""More passes over the training data than this are likely to be a mistake."""

FORWARD_SHARE = 1 / 3
"""FLOPs of a forward pass over those of a training step."""

STATE_BYTES = 12
"""Bytes per parameter of a checkpoint: the weight and Adam's two moments in single precision."""

PRODUCT = 512
"""Rows and columns of the matrices that are multiplied to find the speed of this machine."""

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
        trials = list(_kinds(file, prepared, {}, RunDirectory(Path())))
    except InputError:
        if exact:
            raise
        return None  # no model of that size with this vocabulary
    with _devices(spec.resources, address, local, here) as device:
        models = [_row(trial, device(trial.resources), spec) for trial in trials]
    refused = [model["why_not"] for model in models]
    if None not in refused:
        lines = dict.fromkeys(refused)
        raise InputError([f"{file.origin_of('model')}: model: {line}" for line in lines])
    on_gpus = any(gang.gpus_per_worker for gang in spec.resources.gangs())
    speed = None if address or on_gpus else matrix_flops_per_s()
    for model in models:
        if speed and model["flops"] and model["why_not"] is None:
            model["trial_s"] = (model["flops"] + model["scoring_flops"]) / speed
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

    Every model and batch size is measured alone, at both ends of every range, on the workers that
    the run will have, in whole batches if a step of them fits in `seconds`; else the speed is a
    lower limit. Scoring is predicted from its FLOPs. Nothing is written to a run directory.

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
    _, whole = read_spec(spec, overrides)
    short = ("score.sequences=2", "score.target_se=null", "score.kpi=null")
    file, measured = read_spec(spec, (*overrides, *short))
    # The nodes of a cluster see the folder that run directories are in by default.
    at = None if address is None else Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mptune-plan-", dir=at) as folder:
        session = Session(file, measured, folder, address, local)
        with closing(session.dispatcher()) as dispatcher:
            models = []
            for trial in _kinds(file, session.prepared(), session.data(), session.run.directory):
                say(f"measuring {trial.size_label} for {seconds:g} s")
                models.append(_model(trial, dispatcher, seconds, whole))
            at_once = max(1, min(dispatcher.capacity(), whole.search.concurrency or math.inf))
    return _totals(file, whole, models, at_once)


def _totals(
    file: SpecFile,
    spec: SearchSpec,
    models: Sequence[dict[str, Any]],
    at_once: float,
    searching: bool = True,
) -> dict[str, Any]:
    """All runs together, from what one run of each model takes."""
    search, planned = spec.search, planned_runs(spec, most_ladder_runs(file, spec.compare))
    names = planned if searching else ("ladder", "comparison")
    runs = {name: count for name, count in planned.items() if count and name in names}
    total = sum(runs.values())
    known = [model for model in models if model["trial_s"] is not None]
    works = [total * model["trial_s"] * model["workers"] for model in known]
    wall_s = total * sum(model["trial_s"] for model in known) / max(1, len(known)) / at_once
    flops = [total * model["flops"] for model in models if model["flops"] is not None]
    # Each trial that is paused keeps a checkpoint, and the one before it.
    pauses = search.pruning in PAUSING
    most_paused = search.trials / min(search.rungs, default=1.0) if pauses else 0.0
    checkpoints = 2 * STATE_BYTES * (at_once + most_paused)
    kept = 4 * spec.training.keep_weights * total
    disk_bytes = max(model["parameters"] for model in models) * (checkpoints + kept)
    free_bytes = shutil.disk_usage(Path()).free
    warnings = []
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
) -> Iterable[TrialSpec]:
    """One trial of each kind that takes its own time."""
    found, stage = {}, Stage("search", run, "", prepared, data, 0)
    for number, probe in enumerate(file.probes()):
        trial = stage.make(probe, number, 0)
        training = trial.training.model_dump(mode="json", exclude={"optimizer", "schedule"})
        found[json.dumps([trial.model, training], sort_keys=True)] = trial
    return found.values()


def _row(trial: TrialSpec, device: Device, spec: SearchSpec) -> dict[str, Any]:
    """What one trial of a kind takes, without its times; `why_not` where it does not fit."""
    training, workers = trial.training, trial.resources.workers
    sizes = memory.Sizes.of(trial, device.kind)
    length, vocabulary, family = sizes.length, sizes.vocabulary, sizes.family
    masked = sizes.masked_share * length
    per_token = family.flops(
        vocabulary, length, training.batch_size, round(masked * training.batch_size)
    )
    per_token /= length * training.batch_size
    flops = training.budget_flops
    if training.budget_tokens is not None:
        flops = per_token * training.budget_tokens
    scored = spec.score.sequences + spec.score.rung_sequences * len(spec.search.rungs)
    return {
        "model": trial.size_label,
        "parameters": family.parameters(vocabulary, length),
        "batch_size": training.batch_size,
        "workers": workers,
        "memory_bytes": memory.demand(sizes, training, workers).total,
        "device_bytes": device.bytes,
        "why_not": memory.refusal(trial, lambda resources: device),
        "flops_per_token": per_token,
        "flops": flops,
        "scoring_flops": scored * spec.score.forwards * length * per_token * FORWARD_SHARE,
        **dict.fromkeys(("tokens_per_s", "steps", "training_s", "trial_s")),
    }


def _model(
    trial: TrialSpec, dispatcher: Dispatcher, seconds: float, spec: SearchSpec
) -> dict[str, Any]:
    """What one trial of a kind takes; its times are None where it does not fit or fails."""
    training, workers, prepared = trial.training, trial.resources.workers, trial.prepared
    prepared = prepared.model_copy(update={"heldout_sequences": spec.score.sequences})
    whole = trial.model_copy(update={"score": spec.score, "prepared": prepared})
    row = _row(whole, dispatcher.device(trial.resources), spec)
    if row["why_not"] is not None:
        return row
    found = _measure(trial, dispatcher, 0.0, workers)
    if isinstance(found, TrialResult):
        # As many sequences as a step of `seconds` can have; the first step was slow, too.
        each = min(training.batch_size // workers, int(seconds / found.cost.training_s))
        if each > 1:
            found = _measure(trial, dispatcher, seconds, each * workers)
    if isinstance(found, Failed):
        return row | {"why_not": found.detail}
    cost, per_token = found.cost, row["flops_per_token"]
    flops_per_s = cost.flops / cost.training_s
    flops = row["flops"] or (training.budget_seconds or 0) * flops_per_s
    return row | {
        "tokens_per_s": flops_per_s / per_token,
        "flops": flops,
        "steps": flops / (per_token * training.batch_size * prepared.length),
        "training_s": flops / flops_per_s,
        "trial_s": (flops + row["scoring_flops"]) / flops_per_s
        + cost.setting_up_s
        + cost.scoring_s,
    }


def _measure(
    trial: TrialSpec, dispatcher: Dispatcher, seconds: float, batch_size: int
) -> TrialResult | Failed:
    """The result of a training of some seconds, at least one step."""
    fields = {
        "budget_tokens": None,
        "budget_flops": None,
        "budget_seconds": max(seconds, 1e-3),
        "checkpoint_every_s": 1e9,
        "keep_weights": False,
    }
    if batch_size < trial.training.batch_size:
        fields |= {"batch_size": batch_size, "micro_batch_size": None}
    training = trial.training.model_copy(update=fields)
    trial = trial.model_copy(update={"training": training})
    dispatcher.submit(trial)
    while True:
        for event in dispatcher.events(1.0):
            if isinstance(event, Finished):
                return event.result
            if isinstance(event, Failed):
                return event
            if isinstance(event, Stopped):  # its machine was taken away
                dispatcher.submit(trial)
