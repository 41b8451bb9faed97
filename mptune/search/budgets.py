"""How a search, its confirmation and its comparison share the budgets of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from mptune.spec.schema import SearchSpec
from mptune.study import Budget
from mptune.trial import StageName

STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which they run."""


def planned(spec: SearchSpec) -> dict[StageName, int]:
    """How many runs each stage is to make."""
    search, comparison = spec.search, spec.compare
    return {
        "search": search.trials,
        "confirmation": search.confirm.top * search.confirm.seeds,
        "comparison": len(comparison.arms) * comparison.seeds if comparison else 0,
    }


def given(spec: SearchSpec) -> Budget:
    """For all stages together."""
    search = spec.search
    return Budget(search.budget_worker_seconds, search.budget_gpu_hours, search.budget_seconds)


def share(
    spec: SearchSpec, stage: StageName, used: Mapping[StageName, Mapping[str, float]]
) -> Budget:
    """What a stage may use: every run has the same budget, so stages share by their number.

    What one stage leaves, the next has. `used` is what each has used, keyed as `Budget` is.
    """
    runs, at = planned(spec), STAGES.index(stage)
    later = STAGES[at + 1 :]
    kept = sum(runs[each] for each in later) / max(1, sum(runs[each] for each in STAGES[at:]))

    def of(key: str) -> float | None:
        total: float | None = getattr(given(spec), key)
        if total is None:
            return None
        left = max(0.0, total - sum(used[each][key] for each in STAGES[:at]))
        return max(0.0, left - max(kept * left, sum(used[each][key] for each in later)))

    return Budget(*(of(key) for key in ("worker_s", "gpu_hours", "wall_s")))


def words(spec: SearchSpec) -> str:
    """How the stages share, before anything has run; empty without a budget."""
    of, runs = given(spec), planned(spec)
    parts = {stage: of.times(count / sum(runs.values())) for stage, count in runs.items() if count}
    return "; ".join(f"{stage}: {part}" for stage, part in parts.items() if str(part))
