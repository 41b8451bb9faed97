"""A schedule that is linear between given points."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from mptune.policies._nested import check_interpolates, interpolate
from mptune.policies._ramp import arrow
from mptune.policies._stages import Stages, stage_index
from mptune.policies.base import FloatArray, MaskPolicy


class Piecewise(MaskPolicy):
    """Parameters change linearly between points of progress, and stay after the last one.

    Source: schedules that rise and fall again, e.g. .15, .30, .15; generalises Ankner et al.
    2023, arXiv 2305.15096.
    """

    kind: Literal["piecewise"] = "piecewise"
    points: Stages = Field(description="list of {at: progress, the first 0; policy}, of one kind")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        for left, right in pairwise(self.points):
            check_interpolates(left.policy, right.policy)
        return self

    def at(self, progress: float) -> MaskPolicy:
        """The policy that applies at this progress."""
        index = stage_index(self.points, progress)
        if index == len(self.points) - 1:
            return self.points[-1].policy
        left, right = self.points[index : index + 2]
        share = (progress - left.at) / (right.at - left.at)
        return interpolate(left.policy, right.policy, share)

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self.at(progress).pmf(length, progress)

    def law_words(self) -> str:
        return f"piecewise {arrow([p.policy for p in self.points])}"

    @classmethod
    def examples(cls) -> list[Self]:
        points = [{"at": a, "policy": r} for a, r in ((0, 0.15), (0.5, 0.3), (0.9, 0.15))]
        return [cls.model_validate({"points": points})]
