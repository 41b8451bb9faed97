"""A schedule that rises to a plateau and decays at the end."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mptune.policies._schedules import (
    NestedPolicy,
    Schedule,
    arrow,
    check_interpolates,
    interpolate,
)
from mptune.policies.base import MaskPolicy
from mptune.spec.schema import Fraction


class WarmupPlateauDecay(Schedule):
    """Parameters go from `start` to `plateau`, stay, and go on to `end`, linearly both times.

    Source: the trapezoid of warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395) for a mask
    policy.
    """

    kind: Literal["warmup_plateau_decay"] = "warmup_plateau_decay"
    start: NestedPolicy = Field(description="policy at progress 0: a mask rate or a policy")
    plateau: NestedPolicy = Field(description="policy between, of the same kind as start")
    end: NestedPolicy = Field(description="policy at progress 1, of the same kind as start")
    warmup: Fraction = Field(0.1, description="share of training from start to plateau, in [0, 1]")
    decay: Fraction = Field(0.2, description="share of training from plateau to end, in [0, 1]")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than 1 in all")
        check_interpolates([self.start, self.plateau, self.end])
        return self

    def at(self, progress: float) -> MaskPolicy:
        if progress < self.warmup:
            return interpolate(self.start, self.plateau, progress / self.warmup)
        left = 1.0 - progress
        if left < self.decay:
            return interpolate(self.plateau, self.end, 1.0 - left / self.decay)
        return self.plateau

    def law_words(self) -> str:
        return f"trapezoid {arrow([self.start, self.plateau, self.end])}"

    @classmethod
    def examples(cls) -> list[Self]:
        beta = [{"kind": "beta", "a": a, "b": b} for a, b in ((2, 5), (5, 2), (1, 1))]
        rates = {"start": 0.15, "plateau": 0.4, "end": 0.2}
        laws = {"start": beta[0], "plateau": beta[1], "end": beta[2], "warmup": 0.3, "decay": 0.7}
        return [cls.model_validate(given) for given in (rates, laws)]
