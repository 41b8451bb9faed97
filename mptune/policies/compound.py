"""Policies made of other policies: mixed, one after the other, or interpolated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import cos, pi
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
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
from mptune.policies.base import OUTER, FloatArray, MaskPolicy, percent
from mptune.policies.distributions import Fixed
from mptune.spec.schema import Fraction, Section, build

_UNIFORM = {"kind": "uniform"}


def _beta(a: float, b: float) -> dict[str, Any]:
    return {"kind": "beta", "a": a, "b": b}


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
    misplaced = [key for key in OUTER if key in value]
    if misplaced:
        raise ValueError(f"has {misplaced[0]!r}, which belongs to the outer policy; move it there")
    try:
        return cast(MaskPolicy, build("policy", value))
    except InputError as error:
        # pydantic adds the place in the spec to a ValueError only.
        raise ValueError(str(error)) from None


def _write(policy: MaskPolicy, info: SerializationInfo) -> dict[str, Any]:
    return policy.model_dump(mode=info.mode, exclude=set(OUTER))


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


# --- bases of the schedules --------------------------------------------------------------------


class Schedule(MaskPolicy):
    """A policy that is another policy at each progress."""

    @property
    @abstractmethod
    def _points(self) -> Sequence[tuple[float, MaskPolicy]]:
        """(progress, policy), the first at 0, rising."""

    @abstractmethod
    def at(self, progress: float) -> MaskPolicy:
        """The policy that applies at this progress."""

    def pmf(self, length: int, progress: float) -> FloatArray:
        return self.at(progress).pmf(length, progress)

    def changes(self) -> tuple[float, ...]:
        return tuple(at for at, _ in self._points if 0 < at < 1)

    def until(self, progress: float) -> dict[str, Any]:
        if self.relearn_every is not None:
            return super().until(progress)
        begun = self._begun(progress)
        policies = [policy.model_dump(mode="json") for _, policy in begun]
        if all(policy == policies[0] for policy in policies) and begun[0][1].is_a_law:
            return {**policies[0], **self.outer()}
        places = [at for at, _ in begun]
        return {"kind": self.kind, "at": places, "policies": policies, **self.outer()}

    def _begun(self, progress: float) -> Sequence[tuple[float, MaskPolicy]]:
        """The points that decide the law before this progress."""
        return [point for point in self._points if point[0] < progress]


class Interpolated(Schedule):
    """Parameters change linearly between points of progress, and stay after the last one.

    The points are of one kind.
    """

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        check_interpolates([policy for _, policy in self._points])
        return self

    def at(self, progress: float) -> MaskPolicy:
        points = self._points
        index = max(i for i, (at, _) in enumerate(points) if at <= progress)
        begin, start = points[index]
        if index == len(points) - 1:
            return start
        until, end = points[index + 1]
        return interpolate(start, end, (progress - begin) / (until - begin))

    def _begun(self, progress: float) -> Sequence[tuple[float, MaskPolicy]]:
        # The law is on its way to the next point.
        return self._points[: len(super()._begun(progress)) + 1]

    def law_words(self) -> str:
        return f"{self.kind.removesuffix('_schedule')} {arrow([p for _, p in self._points])}"


class Ramp(Interpolated):
    """Every parameter goes from its value in `start` to that in `end` with progress."""

    EXAMPLES = (
        {"start": 0.5, "end": 0.15},
        {"start": _beta(2, 5), "end": _beta(5, 2)},
        {"start": _UNIFORM, "end": {**_UNIFORM, "high": 0.3}},
    )

    start: NestedPolicy = Field(description="policy at progress 0: a mask rate or a policy")
    end: NestedPolicy = Field(description="policy at progress 1, of the same kind as start")

    @property
    def _points(self) -> Sequence[tuple[float, MaskPolicy]]:
        return (0.0, self.start), (1.0, self.end)


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
    EXAMPLES = tuple(
        {"components": [{"weight": w, "policy": p} for w, p in parts]}
        for parts in (((0.8, _beta(3, 9)), (0.2, _UNIFORM)), ((3, 0.15), (1, 0.5)))
    )
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


class Step(Schedule):
    """Each policy applies from its point of progress to the next one's; kinds may differ.

    Source: step schedules of Ankner et al. 2023, arXiv 2305.15096.
    """

    kind: Literal["step"] = "step"
    EXAMPLES = ({"stages": [{"at": 0, "policy": _UNIFORM}, {"at": 0.7, "policy": 0.15}]},)
    stages: Stages = Field(description="list of {at: progress, the first 0; policy}")

    @property
    def _points(self) -> Sequence[tuple[float, MaskPolicy]]:
        return [(stage.at, stage.policy) for stage in self.stages]

    def at(self, progress: float) -> MaskPolicy:
        return [policy for at, policy in self._points if at <= progress][-1]

    def law_words(self) -> str:
        return f"step {arrow([s.policy for s in self.stages])}"


class Linear(Ramp):
    """Parameters change linearly with progress, e.g. a mask rate that falls from .50 to .10.

    Source: 0.30 to 0.15, Ankner et al. 2023, arXiv 2305.15096; 0.50 to 0.10, EuroBERT, arXiv
    2503.05500.
    """

    kind: Literal["linear"] = "linear"


class CosineSchedule(Ramp):
    """Parameters change along half a cosine: slowly at first, fast halfway, slowly at the end.

    Source: the ramp of SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983) for a mask rate, as
    in Ankner et al. 2023, arXiv 2305.15096.
    """

    kind: Literal["cosine_schedule"] = "cosine_schedule"

    def at(self, progress: float) -> MaskPolicy:
        return super().at((1 - cos(pi * progress)) / 2)


class Piecewise(Interpolated):
    """Parameters change linearly between points of progress, and stay after the last one.

    Source: schedules that rise and fall again, e.g. .15, .30, .15; generalises Ankner et al.
    2023, arXiv 2305.15096.
    """

    kind: Literal["piecewise"] = "piecewise"
    EXAMPLES = (
        {"points": [{"at": a, "policy": r} for a, r in ((0, 0.15), (0.5, 0.3), (0.9, 0.15))]},
    )
    points: Stages = Field(description="list of {at: progress, the first 0; policy}, of one kind")

    @property
    def _points(self) -> Sequence[tuple[float, MaskPolicy]]:
        return [(point.at, point.policy) for point in self.points]


class WarmupPlateauDecay(Interpolated):
    """Parameters go from `start` to `plateau`, stay, and go on to `end`, linearly both times.

    Source: the trapezoid of warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395) for a mask
    policy.
    """

    kind: Literal["warmup_plateau_decay"] = "warmup_plateau_decay"
    EXAMPLES = (
        {"start": 0.15, "plateau": 0.4, "end": 0.2},
        {"start": _beta(2, 5), "plateau": _beta(5, 2), "end": _beta(1, 1), "warmup": 0.3,
         "decay": 0.7},
    )  # fmt: skip
    start: NestedPolicy = Field(description="policy at progress 0: a mask rate or a policy")
    plateau: NestedPolicy = Field(description="policy between, of the same kind as start")
    end: NestedPolicy = Field(description="policy at progress 1, of the same kind as start")
    warmup: Fraction = Field(0.1, description="share of training from start to plateau, in [0, 1]")
    decay: Fraction = Field(0.2, description="share of training from plateau to end, in [0, 1]")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than 1 in all")
        return self

    @property
    def _points(self) -> Sequence[tuple[float, MaskPolicy]]:
        plateau = (self.warmup, self.plateau), (1.0 - self.decay, self.plateau)
        return (0.0, self.start), *plateau, (1.0, self.end)

    def law_words(self) -> str:
        return f"trapezoid {arrow([self.start, self.plateau, self.end])}"
