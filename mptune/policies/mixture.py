"""Mixtures of mask policies."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from mptune.policies._schedules import NestedPolicy
from mptune.policies.base import FloatArray, MaskPolicy
from mptune.spec.schema import Section


class Component(Section):
    """One part of a mixture."""

    weight: float = Field(gt=0, description="share of the sequences, relative to the others")
    policy: NestedPolicy = Field(description="a mask rate or a policy")


class Mixture(MaskPolicy):
    """Every sequence draws its count from one of several policies, chosen by weight.

    Source: UL2's mixture of denoisers (Tay et al. 2023, arXiv 2205.05131); ESM-3's
    0.8 Beta(3, 9) + 0.2 uniform (Hayes et al. 2025, doi:10.1126/science.ads0018).
    """

    kind: Literal["mixture"] = "mixture"
    components: tuple[Component, ...] = Field(
        min_length=1, description="list of {weight: above 0, policy: a mask rate or a policy}"
    )

    def pmf(self, length: int, progress: float) -> FloatArray:
        parts = [c.weight * c.policy.pmf(length, progress) for c in self.components]
        return np.asarray(np.sum(parts, axis=0) / sum(c.weight for c in self.components))

    def law_words(self) -> str:
        total = sum(c.weight for c in self.components)
        parts = [f"{c.weight / total:.2g} {c.policy.law_words()}" for c in self.components]
        return "mixture " + " + ".join(parts)

    @classmethod
    def examples(cls) -> list[Self]:
        esm3 = [
            {"weight": 0.8, "policy": {"kind": "beta", "a": 3, "b": 9}},
            {"weight": 0.2, "policy": {"kind": "uniform"}},
        ]
        rates = [{"weight": 3, "policy": 0.15}, {"weight": 1, "policy": 0.5}]
        return [cls.model_validate({"components": c}) for c in (esm3, rates)]
