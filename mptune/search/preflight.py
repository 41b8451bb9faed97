"""Checks of a valid spec before any training: notes, a dry run, memory refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune import dispatch
from mptune.errors import InputError
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory
from mptune.search.arms import LADDER, RATE, most_ladder_runs
from mptune.search.budget import describe_shares
from mptune.search.stage import Stage
from mptune.spec.schema import SearchSpec, build
from mptune.spec.source import SpecFile
from mptune.tools.prepare import prepare_table
from mptune.trial import Prepared

FEW_STEPS = 50
"""A training of fewer optimizer steps is likely to be a mistake."""

MANY_EPOCHS = 50
"""More passes over the training data than this are likely to be a mistake."""


def notes(file: SpecFile, spec: SearchSpec) -> list[str]:
    """Advice on a valid spec, one line each."""
    dimensions, training, found = file.dimensions, spec.training, []
    sizes = any(name.split(".")[0] == "model" for name in dimensions)
    chosen = (RATE, "training.optimizer.width_rule", "training.optimizer", "training")
    open_rate = training.optimizer.width_rule == "none" and dimensions.keys().isdisjoint(chosen)
    if sizes and open_rate:
        found.append(
            f"{RATE} {training.optimizer.learning_rate:g} is the same for every size, so size and "
            "learning rate are confounded; make it a dimension, or set "
            "training.optimizer.width_rule: mup"
        )
    silent = "precision" not in training.model_fields_set
    if spec.resources.gpus_per_worker and training.precision == "fp32" and silent:
        found.append(
            "training.precision is fp32, its default; bf16 or auto is several times faster on GPUs"
        )
    data = build("data", spec.data)
    steps = (training.budget_tokens or math.inf) / (training.batch_size * data.length)
    if steps < FEW_STEPS:
        found.append(
            f"training.budget_tokens {training.budget_tokens:g} is {max(1, math.ceil(steps))} "
            f"optimizer steps of {training.batch_size} x {data.length} positions"
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
