"""A schedule that is linear between given points."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mptune.policies._schedules import (
    Schedule,
    Stages,
    arrow,
    check_interpolates,
    interpolate,
    stage_index,
)
from mptune.policies.base import MaskPolicy


class Piecewise(Schedule):
    """Parameters change linearly between points of progress, and stay after the last one.

    Source: schedules that rise and fall again, e.g. .15, .30, .15; generalises Ankner et al.
    2023, arXiv 2305.15096.
    """

    kind: Literal["piecewise"] = "piecewise"
    points: Stages = Field(description="list of {at: progress, the first 0; policy}, of one kind")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        check_interpolates([p.policy for p in self.points])
        return self

    def at(self, progress: float) -> MaskPolicy:
        index = stage_index(self.points, progress)
        if index == len(self.points) - 1:
            return self.points[-1].policy
        left, right = self.points[index : index + 2]
        share = (progress - left.at) / (right.at - left.at)
        return interpolate(left.policy, right.policy, share)

    def law_words(self) -> str:
        return f"piecewise {arrow([p.policy for p in self.points])}"

    @classmethod
    def examples(cls) -> list[Self]:
        points = [{"at": a, "policy": r} for a, r in ((0, 0.15), (0.5, 0.3), (0.9, 0.15))]
        return [cls.model_validate({"points": points})]
