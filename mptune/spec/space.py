"""YAML dimensions -> Optuna suggestions -> a concrete spec, and nothing else.

The space is define-by-run, so a dimension inside one option of a choice is suggested only where
that option was taken: Optuna sees a properly conditional space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mptune.errors import InputError
from mptune.spec.source import Choice, Concrete, Node, Range, Scalar, SpecFile, plain


class Suggests(Protocol):
    """An Optuna trial, as far as a space needs one."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float: ...


@dataclass(frozen=True)
class Space:
    """The search space of one spec file."""

    file: SpecFile

    def suggest(self, trial: Suggests) -> Concrete:
        """The spec with every dimension suggested by the trial's sampler."""
        return self.file.concretise(lambda name, dimension: _suggest(trial, name, dimension))

    def at(self, params: Mapping[str, Any]) -> Concrete:
        """The spec at known parameters, e.g. those of the best trial.

        Raises:
            InputError: a dimension is missing from `params`, or has no such option any more.
        """
        return self.file.concretise(lambda name, dimension: _known(params, name, dimension))

    def arms(self) -> list[tuple[str, dict[str, Any]]]:
        """The named arms of the search, in order: (name, Optuna parameters)."""
        arms = self.file.arms("search")
        return [(name, self.arm_params(name, arm)) for name, arm in arms.items()]

    def arm_params(self, name: str, arm: Node) -> dict[str, Any]:
        """Optuna parameters of a named arm of the search; those that it leaves open are sampled.

        Raises:
            InputError: the arm is not a point of the space.
        """
        found = _match(self.file.root, plain(arm), "")
        if found is None:
            raise InputError(
                f"{arm.origin}: search.arms.{name}: {plain(arm)} is outside the space; an arm is "
                "a point of the search space: add its values to the choices"
            )
        return found


def _suggest(trial: Suggests, name: str, dimension: Choice | Range) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(name, dimension.labels)
    if dimension.integer:
        low, high = int(dimension.low), int(dimension.high)
        step = int(dimension.step or 1)
        return trial.suggest_int(name, low, high, step=step, log=dimension.log)
    return trial.suggest_float(
        name, dimension.low, dimension.high, step=dimension.step, log=dimension.log
    )


def _known(params: Mapping[str, Any], name: str, dimension: Choice | Range) -> Any:
    value = params.get(name)
    if name not in params or (isinstance(dimension, Choice) and value not in dimension.labels):
        raise InputError(f"{name} is a dimension with no known value; fix it in the arm or spec")
    return value


def _match(node: Node, wanted: Any, name: str) -> dict[str, Any] | None:
    """Parameters under which `node` takes the value `wanted`, or None if there are none."""
    value = node.value
    if isinstance(value, Choice):
        for option, label in zip(value.options, value.labels, strict=True):
            inner = f"{name}.{label}" if isinstance(option.value, dict) else name
            if (found := _match(option, wanted, inner)) is not None:
                return {name: label, **found}
        return None
    if isinstance(value, Range):
        inside = isinstance(wanted, int | float) and value.low <= wanted <= value.high
        return {name: wanted} if inside else None
    if not (isinstance(value, dict) and isinstance(wanted, Mapping)):
        return {} if plain(node) == wanted else None
    found = {}
    for key, part in wanted.items():
        inner = f"{name}.{key}" if name else key
        matched = _match(value[key], part, inner) if key in value else None
        if matched is None:
            return None
        found |= matched
    return found
