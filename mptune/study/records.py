"""Converts between Optuna's trials and `Trial`: writes and reads their attributes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container
from copy import copy
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mptune.study.optuna_private import set_attributes, user_attributes
from mptune.trial import (
    Failed,
    LearningPoint,
    StageName,
    Trial,
    TrialResult,
    TrialSpec,
)

MEMORY = "memory"
"""Optuna's constraint of a trial that did not fit in memory; it is met where the value is <= 0."""

ASKED = "asked"
"""User attribute of a trial: `repeat`, the number of earlier trials of the same point, is added to
its seed; `why` is the reason for which its point was proposed, as text."""

CURVE = "curve"
"""User attribute of a finished trial: (mask rate, score) pairs."""

JUDGED = "judged"
"""User attribute of a trial: what a pruner that pauses decided of it, oldest first, each as

    decision: "go on", "pause", or "continue" for a paused trial that goes on,
    progress: of the rung,

and of freeze_thaw `why`, as text; of the predictive pruner

    probability: that its final score is within `delta` of the best one,
    threshold: below which it is paused, or above which a paused one goes on,
    best: the best final score so far, and delta, both in nats per token,
    finished: number of finished trials of its size that the probability is computed from.

With fewer than the six finished trials that a decision needs, the other numbers are None."""

JUDGED_BY = "judged_by"
"""User attribute of a trial that a search with ordered results has launched: it is judged by trials
with a number below `below` that were not in flight `beside` it, of those that were `paused` by
their scores until then (progress by number), with `left` trainings for itself and others, and told
after those in flight with a lower `place`, so that a resumed search decides the same."""

PAUSED = "paused"
"""`reason` of a trial that is paused and may go on. Optuna has it as running until the search ends;
then it is pruned."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def describe(trial: optuna.Trial, spec: TrialSpec, **attrs: Any) -> None:
    """Store the spec of the trial, and clear the reason for which it was on hold."""
    past = {key: None for key in ("reason", "detail") if key in trial.user_attrs}
    set_attributes(
        trial,
        **past,
        **attrs,
        label=spec.label,
        seed=spec.seed,
        fingerprint=spec.fingerprint(),
        trial_spec=spec.model_dump_json(),
    )


def record_result(trial: optuna.Trial, result: TrialResult) -> None:
    """Store the result as JSON, and a few values that dashboards show.

    An attribute is a row, and opening a study of 10,000 trials reads every row: so only a few.
    """
    set_attributes(
        trial,
        **scores_in_words(result),
        curve=[(round(p.mask_rate, 4), round(p.nats_per_token, 6)) for p in result.lml.curve],
        cost=result.cost.model_dump(),
        result=result.model_dump_json(),
    )


def scores_in_words(result: TrialResult) -> dict[str, Any]:
    """The scores by names that say what they are; numbers alone, so dashboards can plot them."""
    lml, (se, _) = result.lml, result.lml.error
    error = f"± {se:.2g} nats per token (one standard error) {lml.scope}".strip()
    found = {
        "LML": f"{lml.nats_per_token:.4f} {error if math.isfinite(se) else 'nats per token'}",
        "LML: standard error (nats per token)": se if math.isfinite(se) else None,
        "LML in bits per byte (less is better)": lml.bits_per_byte,
        "LML by domain (nats per token)": {
            name: score.nats_per_token for name, score in result.lml_shift.items()
        },
        "Loss by mask rate (nats per masked token; not used for ranking)": {
            f"{100 * r.rate:g} %": r.loss for r in result.rates
        },
        "Accuracy by mask rate (not used for ranking)": {
            f"{100 * r.rate:g} %": r.accuracy for r in result.rates
        },
    }
    return {name: value for name, value in found.items() if value not in (None, {})}


STEPS = 1000
"""Optuna's steps of a whole training: a rung is a whole number of them."""


def step_of(rung: float) -> int:
    """Optuna's step of a rung."""
    return round(STEPS * rung)


def report_rung(trial: optuna.Trial, value: float, rung: float) -> None:
    """Report a score at a rung to Optuna; reporting a rung again changes nothing.

    Not at the progress of the optimizer's step that reached the rung: that differs between trials.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        trial.report(value, step_of(rung))


def tell_failure(study: optuna.Study, trial: optuna.Trial, failure: Failed) -> None:
    """Tell Optuna that a trial failed.

    Samplers ignore failed trials, but should avoid models that do not fit in memory: such a trial
    is stored as pruned, with a violated constraint.
    """
    set_attributes(trial, reason=failure.reason, detail=failure.detail)
    state = TrialState.FAIL
    if failure.reason == "out_of_memory":
        trial.set_constraint(MEMORY, 1.0)
        state = TrialState.PRUNED
    study.tell(trial.number, state=state)


def tell_pruned(study: optuna.Study, trial: optuna.Trial, detail: str) -> None:
    """Tell Optuna that a trial was pruned, and store the reason as text."""
    set_attributes(trial, reason="pruned", detail=detail)
    study.tell(trial.number, state=TrialState.PRUNED)


def is_paused(trial: FrozenTrial) -> bool:
    """Whether a pruner has stopped the trial at a checkpoint, from which it may go on."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get("reason") == PAUSED


def as_paused(trial: FrozenTrial, progress: float) -> FrozenTrial:
    """A trial as it was while it was paused."""
    found = copy(trial)
    found.state = TrialState.RUNNING
    rungs = trial.intermediate_values.items()
    found.intermediate_values = {s: v for s, v in rungs if s <= step_of(progress)}
    judged = [j for j in trial.user_attrs.get(JUDGED, ()) if j["progress"] <= progress]
    found.user_attrs = {**trial.user_attrs, "reason": PAUSED, JUDGED: judged}
    return found


ONE = 1 - 1e-6
"""A training; shares of trainings are summed with rounding errors."""


def used_share(trial: FrozenTrial) -> float:
    """Which part of one of `search.trials` an ended or paused trial uses: what a pruner that pauses
    let it train, else all."""
    judged = trial.user_attrs.get(JUDGED)
    if not judged or judged[-1]["decision"] != "pause" or has_failed(trial):
        return 1.0
    return 1.0 if trial.state == TrialState.COMPLETE else float(judged[-1]["progress"])


def has_failed(trial: FrozenTrial) -> bool:
    """Whether the trial failed, even if Optuna stores it as pruned; see `tell_failure`."""
    return trial.state == TrialState.FAIL or trial.constraints.get(MEMORY, 0.0) > 0


def as_trial(stored: FrozenTrial, stage: StageName) -> Trial:
    """The `Trial` that Optuna's storage holds."""
    attrs = {**stored.system_attrs, **stored.user_attrs}
    spec = TrialSpec.model_validate_json(attrs["trial_spec"]) if attrs.get("trial_spec") else None
    result = TrialResult.model_validate_json(attrs["result"]) if attrs.get("result") else None
    learning = tuple(LearningPoint(**point) for point in attrs.get("learning", ()))
    reported = sorted(stored.intermediate_values.items())
    rungs = tuple((step / STEPS, value) for step, value in reported)
    state = "FAIL" if has_failed(stored) else "PRUNED" if is_paused(stored) else stored.state.name
    return Trial(
        stage=stage,
        number=stored.number,
        state=state,
        reason=attrs.get("reason"),
        detail=attrs.get("detail"),
        arm=attrs.get("arm"),
        repeats=attrs.get("repeats"),
        seed=spec.seed if spec else None,
        policy=spec.policy if spec else {},
        model=spec.model if spec else {},
        policy_label=spec.policy_label if spec else "",
        size_label=spec.size_label if spec else "",
        parameters=result.cost.parameters if result else None,
        params=stored.params,
        seconds=attrs.get("cost", {}).get("total_s"),
        asked=attrs.get(ASKED),
        judged=tuple(attrs.get(JUDGED, ())),
        retries=attrs.get("retries", 0),
        refused=attrs.get("refused", False),
        same_as=attrs.get("same_as"),
        result=result,
        rungs=rungs,
        learning=result.learning if result else learning,
        spec=spec,
    )


def ended_trials(
    study: optuna.Study, stage: StageName, besides: Container[int]
) -> dict[int, Trial]:
    """The trials that have ended or are paused, by number, but for those `besides`.

    One that went on and has not ended is as it was when it was paused.
    """
    found = {}
    for stored in study.get_trials(deepcopy=False):
        stops = [d for d in stored.user_attrs.get(JUDGED, ()) if d["decision"] == "continue"]
        is_told = stored.state in ENDED or is_paused(stored)
        if stored.number not in besides and (is_told or stops):
            trial = _whole(study, stored)
            trial = trial if is_told else as_paused(trial, stops[-1]["progress"])
            found[stored.number] = as_trial(trial, stage)
    return found


def one_trial(study: optuna.Study, stage: StageName, number: int) -> tuple[FrozenTrial, Trial]:
    """A trial as Optuna has it, and as the `Trial` that it is."""
    stored = study.get_trials(deepcopy=False)[number]
    return stored, as_trial(_whole(study, stored), stage)


def _whole(study: optuna.Study, stored: FrozenTrial) -> FrozenTrial:
    """A trial with all its attributes, also of a study that is open with some of them only."""
    found = copy(stored)
    found.user_attrs = dict(user_attributes(study, stored))
    return found


def last_results(study: optuna.Study, count: int) -> list[tuple[TrialSpec, TrialResult]]:
    """The last `count` trials that were trained to their end, in order of number."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ran = [t for t in finished if "same_as" not in t.user_attrs]
    found = [user_attributes(study, trial) for trial in ran[-count:]]
    return [
        (
            TrialSpec.model_validate_json(attrs["trial_spec"]),
            TrialResult.model_validate_json(attrs["result"]),
        )
        for attrs in found
        if "result" in attrs
    ]


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the score that each dimension decides, largest first; empty with too few trials.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) over the finished trials and the dimensions
    that all of them have: one that only some have, such as the rate of one of several policies,
    would be estimated from a few trials.
    """
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if len(done) < MIN_JUDGED:
        return {}
    params = sorted(set.intersection(*(set(t.params) for t in done)))
    with warnings.catch_warnings(action="ignore"):
        try:
            shares = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                params=params,
            )
        except (ValueError, RuntimeError):  # no dimension has two values
            return {}
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


MIN_JUDGED = 4
"""Fewest finished trials for which importances are computed."""
