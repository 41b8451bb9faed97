"""A study as the storage has it, for whoever reads: its trials, its spend, the best of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from mptune.errors import NoResultError
from mptune.paths import RunDirectory
from mptune.search.ledger import Ledger
from mptune.study.attributes import has_failed
from mptune.study.spend import load_spend
from mptune.study.storage import existing
from mptune.trial import LearningPoint, TrialResult, TrialSpec


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the storage has it."""

    number: int
    state: str
    params: Mapping[str, Any]
    arm: str | None
    label: str
    spec: TrialSpec | None
    result: TrialResult | None
    reason: str | None
    detail: str | None
    rungs: Mapping[int, float]
    seconds: float | None
    same_as: int | None = None
    learning: tuple[LearningPoint, ...] = ()
    """At the rungs that it reached, whatever became of it."""


def records(run: RunDirectory, url: str | None, name: str) -> list[TrialRecord]:
    """Every trial of a study in order of number; empty if there is no such study."""
    study = existing(run, url, name)
    return [_record(t) for t in study.get_trials(deepcopy=False)] if study else []


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    spec, result = attrs.get("trial_spec"), attrs.get("result")
    cost = attrs.get("cost", {})
    return TrialRecord(
        number=trial.number,
        state="FAIL" if has_failed(trial) else trial.state.name,
        params=trial.params,
        arm=attrs.get("arm"),
        label=attrs.get("label", ""),
        spec=TrialSpec.model_validate_json(spec) if spec else None,
        result=TrialResult.model_validate_json(result) if result else None,
        reason=attrs.get("reason"),
        detail=attrs.get("detail"),
        rungs=trial.intermediate_values,
        seconds=cost.get("total_s", attrs.get("cost_total_s")),
        same_as=attrs.get("same_as"),
        learning=tuple(LearningPoint(**point) for point in attrs.get("learning", ())),
    )


def spent_s(run: RunDirectory, url: str | None, name: str) -> float:
    """Wall-clock seconds that drivers of this study have run, over all resumes."""
    study = existing(run, url, name)
    return load_spend(study)[0] if study else 0.0


def ledger(run: RunDirectory, url: str | None, name: str) -> Ledger:
    """What the trials of this study have used, over all resumes."""
    study = existing(run, url, name)
    return load_spend(study)[1] if study else Ledger()


def used(run: RunDirectory, url: str | None, name: str) -> dict[str, float]:
    """What this study has used, keyed as the limits of a `Budget`."""
    work = ledger(run, url, name)
    return {
        "worker_s": work.worker_s,
        "gpu_hours": work.gpu_s / 3600,
        "wall_s": spent_s(run, url, name),
    }


def best(found: Sequence[TrialRecord]) -> TrialRecord:
    """The finished trial with the highest LML; the earlier one of equals.

    Raises:
        NoResultError: no trial has finished.
    """
    finished = [r for r in found if r.result is not None and r.state == "COMPLETE"]
    if not finished:
        raise NoResultError("no trial has finished, so there is nothing to recommend")
    return min(finished, key=by_score)


def by_score(record: TrialRecord) -> tuple[float, int]:
    """Sorts finished trials, best first; the earlier one of equals."""
    assert record.result is not None
    return -record.result.lml.nats_per_token, record.number
