"""A study as the storage has it, for whoever reads: its trials, its spend, the best of it."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from mptune.errors import NoResultError
from mptune.paths import RunDirectory
from mptune.search.ledger import Ledger
from mptune.study.attributes import has_failed
from mptune.study.spend import load_spend
from mptune.study.storage import compare_name, confirm_name, existing
from mptune.trial import LearningPoint, StageName, Trial, TrialResult, TrialSpec


def records(run: RunDirectory, url: str | None, name: str) -> list[Trial]:
    """Every trial of a study in order of number; empty if there is no such study."""
    study = existing(run, url, name)
    return [_trial(t, stage_of(name)) for t in study.get_trials(deepcopy=False)] if study else []


def _trial(stored: FrozenTrial, stage: StageName) -> Trial:
    attrs = stored.user_attrs
    spec = TrialSpec.model_validate_json(attrs["trial_spec"]) if attrs.get("trial_spec") else None
    result = TrialResult.model_validate_json(attrs["result"]) if attrs.get("result") else None
    learning = tuple(LearningPoint(**point) for point in attrs.get("learning", ()))
    rungs = tuple((step / 100, value) for step, value in sorted(stored.intermediate_values.items()))
    return Trial(
        stage=stage,
        number=stored.number,
        state="FAIL" if has_failed(stored) else stored.state.name,
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
        same_as=attrs.get("same_as"),
        result=result,
        rungs=rungs,
        learning=result.learning if result else learning,
        spec=spec,
    )


def stage_of(study_name: str) -> StageName:
    """Which stage of a search the study of this name is."""
    if study_name == confirm_name(study_name.removesuffix("/confirm")):
        return "confirmation"
    if study_name == compare_name(study_name.removesuffix("/compare")):
        return "comparison"
    return "search"


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


def best(found: Sequence[Trial]) -> Trial:
    """The finished trial with the highest LML; the earlier one of equals.

    Raises:
        NoResultError: no trial has finished.
    """
    finished = [r for r in found if r.result is not None and r.state == "COMPLETE"]
    if not finished:
        raise NoResultError("no trial has finished, so there is nothing to recommend")
    return min(finished, key=by_score)


def by_score(record: Trial) -> tuple[float, int]:
    """Sorts finished trials, best first; the earlier one of equals."""
    assert record.result is not None
    return -record.result.lml.nats_per_token, record.number
