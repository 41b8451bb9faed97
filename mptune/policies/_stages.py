"""Schedules through a list of policies at given points of progress."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from mptune.policies._nested import NestedPolicy
from mptune.spec.schema import Fraction, Section


class Stage(Section):
    """A policy and the progress it belongs to."""

    at: Fraction = Field(description="training progress, in [0, 1]")
    policy: NestedPolicy = Field(description="a mask rate or a policy")


def _ascending(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    at = [stage.at for stage in stages]
    if at[0] != 0 or any(a >= b for a, b in pairwise(at)):
        raise ValueError(f"is at {at}; `at` starts with 0 and rises")
    return stages


Stages = Annotated[tuple[Stage, ...], Field(min_length=2), AfterValidator(_ascending)]


def stage_index(stages: tuple[Stage, ...], progress: float) -> int:
    """The last stage that has begun."""
    return max(i for i, stage in enumerate(stages) if stage.at <= progress)
