"""What a spec will cost, before it runs: time, work, memory and disk, from short real trainings."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError
from mptune.models import _memory as memory
from mptune.search.application import Session, read_spec
from mptune.search.arms import most_ladder_runs
from mptune.search.budget import planned_runs
from mptune.search.stage import Stage
from mptune.spec.schema import SearchSpec
from mptune.spec.source import SpecSource
from mptune.trial import Failed, Finished, Stopped, TrialResult, TrialSpec

FORWARD_SHARE = 1 / 3
"""FLOPs of a forward pass over those of a training step."""

STATE_BYTES = 12
"""Bytes per parameter of a checkpoint: the weight and Adam's two moments in single precision."""

PAUSING = ("freeze_thaw", "predictive")
"""Pruners that pause trials, which use up `search.trials` by parts."""


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
            run, prepared = session.run.directory, session.prepared()
            stage = Stage("search", run, "", prepared, session.data(), 0)
            trials = [stage.make(probe, n, 0) for n, probe in enumerate(file.probes())]
            models = []
            for trial in {_kind(trial): trial for trial in trials}.values():
                say(f"measuring {trial.size_label} for {seconds:g} s")
                models.append(_model(trial, dispatcher, seconds, whole))
            at_once = dispatcher.capacity()
    if whole.search.concurrency is not None:
        at_once = min(at_once, whole.search.concurrency)
    runs = planned_runs(whole, most_ladder_runs(file, whole.compare))
    known = [model for model in models if model["trial_s"] is not None]
    total = sum(runs.values())
    works = sorted(total * model["trial_s"] * model["workers"] for model in known)
    mean_s = total * sum(model["trial_s"] for model in known) / len(known) if known else None
    kept = 4 * whole.training.keep_weights * total
    largest = max(model["parameters"] for model in models)
    return {
        "name": whole.name,
        "models": models,
        "runs": {name: count for name, count in runs.items() if count},
        "at_once": at_once,
        "worker_s": [works[0], works[-1]] if works else None,
        "wall_s": None if mean_s is None else mean_s / max(1, at_once),
        "disk_bytes": largest * (2 * STATE_BYTES * (max(1, at_once) + _most_paused(whole)) + kept),
        "pruner": whole.search.pruning,
        "pauses": whole.search.pruning in PAUSING,
        "limits": dict(_limits(whole)),
    }


def _kind(trial: TrialSpec) -> str:
    """Key of the trials that take equally long."""
    training = trial.training.model_dump(mode="json", exclude={"optimizer", "schedule"})
    return json.dumps([trial.model, training], sort_keys=True)


def _most_paused(spec: SearchSpec) -> float:
    """Most trials that can be paused at a time; each keeps a checkpoint, and the one before it."""
    if spec.search.pruning not in PAUSING:
        return 0.0
    return spec.search.trials / min(spec.search.rungs, default=1.0)


def _limits(spec: SearchSpec) -> Iterator[tuple[str, float]]:
    for key in ("budget_worker_seconds", "budget_gpu_hours", "budget_seconds"):
        if (value := getattr(spec.search, key)) is not None:
            yield f"search.{key}", value


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
