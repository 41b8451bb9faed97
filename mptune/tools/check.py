"""The conformance run of a `model` section, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mptune.errors import InputError
from mptune.models._conformance import conformance
from mptune.spec.schema import build


def check_model(
    model: Mapping[str, Any], symbols: int, length: int
) -> tuple[str, int, Iterator[tuple[str, str | None]]]:
    """The model in words, its parameters, and its checks with what is wrong or None.

    Args:
        symbols: that can be predicted; [MASK] and padding come on top.

    Raises:
        InputError: the section is wrong, or no model can be made of it.
    """
    try:
        member = build("model", model).sized(symbols + 2, length)
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    checks = conformance(lambda: member.build(symbols + 2, symbols, length), symbols, length)
    return member.words(), member.parameters(symbols + 2, length), checks
