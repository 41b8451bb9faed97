"""Before a run: notes on a valid spec, a dry run, memory refusals, and what the run will cost."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mptune import dispatch
from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory
from mptune.search.arms import LADDER, RATE, most_ladder_runs
from mptune.search.budget import describe_shares, planned_runs
from mptune.search.stage import Stage
from mptune.spec.schema import Search, SearchSpec, build
from mptune.spec.source import SpecFile, SpecSource
from mptune.tools.prepare import prepare_table
from mptune.trial import Failed, Finished, Prepared, Stopped, TrialResult, TrialSpec

if TYPE_CHECKING:
    from mptune.search.application import Session

FEW_STEPS = 50
"""A training of fewer optimizer steps is likely to be a mistake."""

MANY_EPOCHS = 50
"""More passes over the training data than this are likely to be a mistake."""

FORWARD_SHARE = 1 / 3
"""FLOPs of a forward pass over those of a training step."""

STATE_BYTES = 12
"""Bytes per parameter of a checkpoint: the weight and Adam's two moments in single precision."""

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
            + ("" if "class" in spec.model else ", or set training.optimizer.width_rule: mup")
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
    data = build("data", spec.data)
    steps = (training.budget_tokens or math.inf) / (training.batch_size * data.length)
    if steps < FEW_STEPS:
        number = max(1, math.ceil(steps))
        found.append(
            f"training.budget_tokens {training.budget_tokens:g} is {number} optimizer "
            f"step{'s' * (number > 1)} of {training.batch_size} x {data.length} positions"
        )
    return found


def inspect_data(file: SpecFile, spec: SearchSpec) -> dict[str, Any]:
    """Prepare the data and describe them, with all warnings; see `Modality.inspect`.

    Raises:
        InputError: the data are missing or broken.
    """
    modality = build("data", spec.data).resolved(file.path.absolute().parent)
    try:
        report: dict[str, Any] = modality.inspect(modality.prepare(cache_directory() / "tables"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file.origin_of('data')}: data: {error}") from None
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


def dry_run(
    file: SpecFile, spec: SearchSpec, searching: bool, address: str | None
) -> Iterator[str]:
    """The runs of `search`, or without `searching` of `compare`, as lines of text.

    Raises:
        InputError, DispatchError: see `memory_refusals`.
    """
    search, comparison, resources = spec.search, spec.compare, spec.resources
    yield f"{spec.name}: {build('data', spec.data).words()}"
    if searching:
        yield (
            f"  search: {search.trials} trials over {len(file.dimensions)} dimensions "
            f"({search.sampler.kind}, pruner {search.pruning}); "
            f"named arms: {', '.join(search.arms) or 'none'}"
        )
        if search.confirm.top:
            confirm = search.confirm
            yield f"  confirmation: {confirm.top} trials x {confirm.seeds} fresh seeds"
    if comparison is not None:
        count, most = len(comparison.arms), comparison.max_seeds
        more = f", up to {count * most} while undecided" if most else ""
        if ladder := most_ladder_runs(file, comparison):
            yield (
                f"  ladder: up to {ladder} runs, {len(LADDER)} for each arm of the comparison "
                "whose learning rate is not known from the search"
            )
        yield f"  comparison: {count * comparison.seeds} runs{more}: {', '.join(comparison.arms)}"
    if searching and (shares := describe_shares(spec, most_ladder_runs(file, comparison))):
        yield f"  budgets: {shares}"
    yield (
        f"  workers of each trial: {resources.workers}; CPUs of each worker: "
        f"{resources.cpus_per_worker:g}, GPUs: {resources.gpus_per_worker:g}"
    )
    for line in memory_refusals(file, spec, address):
        yield f"  will be refused: {line}"
    yield f"  time, FLOPs, memory and disk: mptune plan {file.path} predicts them"


def memory_refusals(file: SpecFile, spec: SearchSpec, address: str | None) -> list[str]:
    """One line for each model of the search that does not fit in memory.

    The memory of a worker is that of the cluster at `address`, or `resources.memory_gb`; without
    both, no model is refused. Every option and both ends of every range are tried. The data are
    prepared, because the vocabulary decides the size of a model.

    Raises:
        InputError: no model fits, or the data are missing or broken.
        DispatchError: the cluster cannot be reached.
    """
    if address is None and spec.resources.memory_gb is None:
        return []
    try:
        base = file.path.absolute().parent
        table = prepare_table(spec.data, cache_directory() / "tables", base)
    except InputError as error:
        raise InputError(f"{file.origin_of('data')}: {error}") from None
    prepared = Prepared(
        table=str(table.path),
        table_hash=table.hash,
        plan="",
        plan_hash="",
        vocabulary_size=table.vocabulary_size,
        length=table.length,
        train_sequences=len(table.train.tokens),
        heldout_sequences=min(spec.score.sequences, len(table.heldout.tokens)),
        heldout_tokens=0,
        bytes_per_token=table.bytes_per_token,
        description=table.description,
    )
    stage = Stage("search", RunDirectory(Path()), "", prepared, {}, 0)
    trials = [stage.make(probe, 0, 0) for probe in file.probes()]
    dispatcher = dispatch.make(spec.resources, local=address is None, address=address)
    try:
        found = [memory.refusal(trial, dispatcher.device) for trial in trials]
    finally:
        dispatcher.close()
    lines = list(dict.fromkeys(line for line in found if line is not None))
    if None not in found:
        raise InputError([f"{file.origin_of('model')}: model: {line}" for line in lines])
    return lines


def refuse_misfits(file: SpecFile, spec: SearchSpec, address: str | None) -> None:
    """Raise if the spec has gangs that the cluster at `address` can never place.

    Raises:
        InputError: one line per such gang.
        DispatchError: the cluster cannot be reached.
    """
    if address is None or spec.resources.scale_up_timeout_s:
        return
    at = f"{file.origin_of('resources')}: resources"
    problems = [f"{at}: {why}" for why in dispatch.misfits(spec.resources, address)]
    if problems:
        raise InputError(problems)


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
            for trial in _kinds(session):
                say(f"measuring {trial.size_label} for {seconds:g} s")
                models.append(_model(trial, dispatcher, seconds, whole))
            at_once = max(1, min(dispatcher.capacity(), whole.search.concurrency or math.inf))
    runs = planned_runs(whole, most_ladder_runs(file, whole.compare))
    total = sum(runs.values())
    known = [model for model in models if model["trial_s"] is not None]
    works = [total * model["trial_s"] * model["workers"] for model in known]
    wall_s = total * sum(model["trial_s"] for model in known) / max(1, len(known)) / at_once
    checkpoints = 2 * STATE_BYTES * (at_once + _most_paused(whole))
    kept = 4 * whole.training.keep_weights * total
    return {
        "name": whole.name,
        "models": models,
        "runs": {name: count for name, count in runs.items() if count},
        "at_once": at_once,
        "worker_s": [min(works), max(works)] if works else None,
        "wall_s": wall_s if works else None,
        "disk_bytes": max(model["parameters"] for model in models) * (checkpoints + kept),
        **_limits(whole.search),
    }


def _kinds(session: Session) -> Iterable[TrialSpec]:
    """One trial of each kind that takes its own time."""
    found, run, prepared = {}, session.run.directory, session.prepared()
    stage = Stage("search", run, "", prepared, session.data(), 0)
    for number, probe in enumerate(session.file.probes()):
        trial = stage.make(probe, number, 0)
        training = trial.training.model_dump(mode="json", exclude={"optimizer", "schedule"})
        found[json.dumps([trial.model, training], sort_keys=True)] = trial
    return found.values()


def _most_paused(spec: SearchSpec) -> float:
    """Most trials that can be paused at a time; each keeps a checkpoint, and the one before it."""
    if spec.search.pruning not in PAUSING:
        return 0.0
    return spec.search.trials / min(spec.search.rungs, default=1.0)


def _limits(search: Search) -> dict[str, Any]:
    """What may end trials, or the search, early."""
    keys = ("budget_worker_seconds", "budget_gpu_hours", "budget_seconds")
    values = {f"search.{key}": getattr(search, key) for key in keys}
    return {
        "pruner": search.pruning,
        "pauses": search.pruning in PAUSING,
        "limits": {key: value for key, value in values.items() if value is not None},
    }


def _model(
    trial: TrialSpec, dispatcher: Dispatcher, seconds: float, spec: SearchSpec
) -> dict[str, Any]:
    """What one trial of a kind takes; its times are None where it does not fit or fails."""
    device, prepared, training = dispatcher.device(trial.resources), trial.prepared, trial.training
    prepared = prepared.model_copy(update={"heldout_sequences": spec.score.sequences})
    whole = trial.model_copy(update={"score": spec.score, "prepared": prepared})
    sizes, workers = memory.Sizes.of(whole, device.kind), trial.resources.workers
    row: dict[str, Any] = {
        "model": trial.size_label,
        "parameters": sizes.family.parameters(sizes.vocabulary, sizes.length),
        "batch_size": training.batch_size,
        "workers": workers,
        "memory_bytes": memory.demand(sizes, training, workers).total,
        "device_bytes": device.bytes,
        "why_not": memory.refusal(whole, lambda resources: device),
        **dict.fromkeys(("tokens_per_s", "flops", "steps", "training_s", "trial_s")),
    }
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
    cost = found.cost
    per_token, flops_per_s = cost.flops / cost.tokens, cost.flops / cost.training_s
    flops = training.budget_flops or per_token * (training.budget_tokens or 0)
    flops = flops or (training.budget_seconds or 0) * flops_per_s
    scored = spec.score.sequences + spec.score.rung_sequences * len(spec.search.rungs)
    forwards = scored * spec.score.forwards * sizes.length * per_token * FORWARD_SHARE
    return row | {
        "tokens_per_s": flops_per_s / per_token,
        "flops": flops,
        "steps": flops / (per_token * training.batch_size * sizes.length),
        "training_s": flops / flops_per_s,
        "trial_s": (flops + forwards) / flops_per_s + cost.setting_up_s + cost.scoring_s,
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
