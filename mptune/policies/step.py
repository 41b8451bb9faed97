"""A schedule that jumps from policy to policy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mptune.policies._ramp import arrow
from mptune.policies._stages import Stages, stage_index
from mptune.policies.base import FloatArray, MaskPolicy


class Step(MaskPolicy):
    """Each policy applies from its point of progress to the next one's; kinds may differ.

    Source: step schedules of Ankner et al. 2023, arXiv 2305.15096.
    """

    kind: Literal["step"] = "step"
    stages: Stages = Field(description="list of {at: progress, the first 0; policy}")

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self.stages[stage_index(self.stages, progress)].policy.pmf(length, progress)

    def law_words(self) -> str:
        return f"step {arrow([s.policy for s in self.stages])}"

    @classmethod
    def examples(cls) -> list[Self]:
        stages = [{"at": 0, "policy": {"kind": "uniform"}}, {"at": 0.7, "policy": 0.15}]
        return [cls.model_validate({"stages": stages})]
