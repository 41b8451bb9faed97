"""Schedules from one policy to another over the whole of training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from mptune.policies._nested import NestedPolicy, check_interpolates, interpolate
from mptune.policies.base import FloatArray, MaskPolicy, percent
from mptune.policies.fixed import Fixed


class Ramp(MaskPolicy):
    """Every parameter goes from its value in `start` to that in `end` with progress."""

    start: NestedPolicy = Field(description="policy at progress 0: a mask rate or a policy")
    end: NestedPolicy = Field(description="policy at progress 1, of the same kind as start")

    @abstractmethod
    def share(self, progress: float) -> float:
        """How far from start to end, in [0, 1], at a progress in [0, 1]."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        check_interpolates(self.start, self.end)
        return self

    def at(self, progress: float) -> MaskPolicy:
        """The policy that applies at this progress."""
        return interpolate(self.start, self.end, self.share(progress))

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self.at(progress).pmf(length, progress)

    def law_words(self) -> str:
        return f"{self.kind.removesuffix('_schedule')} {arrow([self.start, self.end])}"

    @classmethod
    def examples(cls) -> list[Self]:
        beta = [{"kind": "beta", "a": a, "b": b} for a, b in ((2, 5), (5, 2))]
        pairs = [(0.5, 0.15), tuple(beta), ({"kind": "uniform"}, {"kind": "uniform", "high": 0.3})]
        return [cls.model_validate({"start": s, "end": e}) for s, e in pairs]


def arrow(policies: list[MaskPolicy]) -> str:
    """Policies one after the other: `"50→15 %"` for fixed rates."""
    rates = [percent(p.rate) for p in policies if isinstance(p, Fixed)]
    if len(rates) == len(policies):
        return "→".join(rates) + " %"
    return " → ".join(p.law_words() for p in policies)
