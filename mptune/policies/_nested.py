"""Policies inside policies: how a spec names them, and how two of them are interpolated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    WithJsonSchema,
)

from mptune.errors import InputError
from mptune.policies.base import MaskPolicy
from mptune.spec.schema import build

_OUTER = ("reduction", "corruption", "structure")
"""Fields that only the outermost policy of a spec decides."""


def _read(value: object) -> MaskPolicy:
    """A nested policy from a spec: a mask rate stands for a fixed policy.

    Raises:
        ValueError: in the words of a spec's errors; a ValidationError for a wrong parameter.
    """
    if isinstance(value, MaskPolicy):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _fixed(value)
    if not isinstance(value, Mapping):
        raise ValueError("is neither a mask rate nor a policy; give a fraction or {kind: ...}")
    misplaced = [key for key in _OUTER if key in value]
    if misplaced:
        raise ValueError(f"has {misplaced[0]!r}, which belongs to the outer policy; move it there")
    try:
        return cast(MaskPolicy, build("policy", value))
    except InputError as error:
        # pydantic adds where in the spec it is to a ValueError only.
        raise ValueError(str(error)) from None


def _fixed(rate: float) -> MaskPolicy:
    try:
        return cast(MaskPolicy, build("policy", {"kind": "fixed", "rate": rate}))
    except ValidationError as error:
        # The spec holds a number here, so the message must not name the key `rate`.
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


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


def interpolate(start: MaskPolicy, end: MaskPolicy, share: float) -> MaskPolicy:
    """The policy with every number moved from `start` towards `end` by `share` in [0, 1].

    Raises:
        ValueError: the two differ in more than numbers.
    """
    mixed = _mix(start.model_dump(mode="json"), end.model_dump(mode="json"), share)
    return type(start).model_validate(mixed)


def check_interpolates(start: MaskPolicy, end: MaskPolicy) -> None:
    """Refuse two policies that have nothing in between.

    Raises:
        ValueError: in the words of a spec's errors.
    """
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
