"""A schedule that jumps from policy to policy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mptune.policies._schedules import Schedule, Stages, arrow, stage_index
from mptune.policies.base import MaskPolicy


class Step(Schedule):
    """Each policy applies from its point of progress to the next one's; kinds may differ.

    Source: step schedules of Ankner et al. 2023, arXiv 2305.15096.
    """

    kind: Literal["step"] = "step"
    stages: Stages = Field(description="list of {at: progress, the first 0; policy}")

    def at(self, progress: float) -> MaskPolicy:
        return self.stages[stage_index(self.stages, progress)].policy

    def law_words(self) -> str:
        return f"step {arrow([s.policy for s in self.stages])}"

    @classmethod
    def examples(cls) -> list[Self]:
        stages = [{"at": 0, "policy": {"kind": "uniform"}}, {"at": 0.7, "policy": 0.15}]
        return [cls.model_validate({"stages": stages})]
