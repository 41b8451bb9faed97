"""Schedules: policies made of other policies, one after the other or interpolated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Self, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from mptune.errors import InputError
from mptune.policies.base import FloatArray, MaskPolicy, percent
from mptune.policies.fixed import Fixed
from mptune.spec.schema import Fraction, Section, build

_OUTER = ("reduction", "corruption", "structure")
"""Fields that only the outermost policy of a spec decides."""


# --- policies inside policies ------------------------------------------------------------------


def _read(value: object) -> MaskPolicy:
    """A nested policy from a spec: a mask rate means a fixed policy.

    Raises:
        ValueError: one line for the user; a ValidationError for a wrong parameter.
    """
    if isinstance(value, MaskPolicy):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return Fixed(rate=value)
        except ValidationError as error:
            # The spec holds a number here, so the message must not name the key `rate`.
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    if not isinstance(value, Mapping):
        raise ValueError("is neither a mask rate nor a policy; give a fraction or {kind: ...}")
    misplaced = [key for key in _OUTER if key in value]
    if misplaced:
        raise ValueError(f"has {misplaced[0]!r}, which belongs to the outer policy; move it there")
    try:
        return cast(MaskPolicy, build("policy", value))
    except InputError as error:
        # pydantic adds the place in the spec to a ValueError only.
        raise ValueError(str(error)) from None


def _write(policy: MaskPolicy, info: SerializationInfo) -> dict[str, Any]:
    return policy.model_dump(mode=info.mode, exclude=set(_OUTER))


NestedPolicy = Annotated[
    MaskPolicy,
    BeforeValidator(_read),
    PlainSerializer(_write),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"type": "object", "see": "policy"},
            ]
        }
    ),
]
"""A policy field: a mask rate or a policy mapping in the spec, a `MaskPolicy` in Python."""


class ScheduleStage(Section):
    """A policy and the progress it belongs to."""

    at: Fraction = Field(description="training progress, in [0, 1]")
    policy: NestedPolicy = Field(description="a mask rate or a policy")


def _ascending(stages: tuple[ScheduleStage, ...]) -> tuple[ScheduleStage, ...]:
    at = [stage.at for stage in stages]
    if at[0] != 0 or any(a >= b for a, b in pairwise(at)):
        raise ValueError(f"is at {at}; `at` starts with 0 and rises")
    return stages


Stages = Annotated[tuple[ScheduleStage, ...], Field(min_length=2), AfterValidator(_ascending)]


def stage_index(stages: tuple[ScheduleStage, ...], progress: float) -> int:
    """The last stage that has begun."""
    return max(i for i, stage in enumerate(stages) if stage.at <= progress)


# --- bases of the schedules --------------------------------------------------------------------


class Schedule(MaskPolicy):
    """A policy that is another policy at each progress."""

    @abstractmethod
    def at(self, progress: float) -> MaskPolicy:
        """The policy that applies at this progress."""

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self.at(progress).pmf(length, progress)


class Ramp(Schedule):
    """Every parameter goes from its value in `start` to that in `end` with progress."""

    start: NestedPolicy = Field(description="policy at progress 0: a mask rate or a policy")
    end: NestedPolicy = Field(description="policy at progress 1, of the same kind as start")

    @abstractmethod
    def share(self, progress: float) -> float:
        """How far from start to end, in [0, 1], at a progress in [0, 1]."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        check_interpolates([self.start, self.end])
        return self

    def at(self, progress: float) -> MaskPolicy:
        return interpolate(self.start, self.end, self.share(progress))

    def law_words(self) -> str:
        return f"{self.kind.removesuffix('_schedule')} {arrow([self.start, self.end])}"

    @classmethod
    def examples(cls) -> list[Self]:
        beta = [{"kind": "beta", "a": a, "b": b} for a, b in ((2, 5), (5, 2))]
        pairs = [(0.5, 0.15), tuple(beta), ({"kind": "uniform"}, {"kind": "uniform", "high": 0.3})]
        return [cls.model_validate({"start": s, "end": e}) for s, e in pairs]


def arrow(policies: Sequence[MaskPolicy]) -> str:
    """Policies one after the other: `"50→15 %"` for fixed rates."""
    rates = [percent(p.rate) for p in policies if isinstance(p, Fixed)]
    if len(rates) == len(policies):
        return "→".join(rates) + " %"
    return " → ".join(p.law_words() for p in policies)


# --- interpolation -----------------------------------------------------------------------------


def interpolate(start: MaskPolicy, end: MaskPolicy, share: float) -> MaskPolicy:
    """The policy with every number moved from `start` towards `end` by `share` in [0, 1].

    Raises:
        ValueError: the two differ in more than numbers.
    """
    mixed = _mix(start.model_dump(mode="json"), end.model_dump(mode="json"), share)
    return type(start).model_validate(mixed)


def check_interpolates(policies: Sequence[MaskPolicy]) -> None:
    """Refuse neighbours that cannot be interpolated.

    Raises:
        ValueError: one line for the user.
    """
    for start, end in pairwise(policies):
        if start.kind != end.kind:
            raise ValueError(f"cannot go from {start.kind!r} to {end.kind!r}; give two of one kind")
        interpolate(start, end, 0.5)


def _mix(start: Any, end: Any, share: float) -> Any:
    if start == end:
        return start
    if isinstance(start, dict) and isinstance(end, dict) and start.keys() == end.keys():
        return {key: _mix(start[key], end[key], share) for key in start}
    if isinstance(start, list) and isinstance(end, list) and len(start) == len(end):
        return [_mix(a, b, share) for a, b in zip(start, end, strict=True)]
    if isinstance(start, int | float) and isinstance(end, int | float):
        return (1 - share) * start + share * end
    raise ValueError(f"cannot go from {start!r} to {end!r}; only numbers may differ")
