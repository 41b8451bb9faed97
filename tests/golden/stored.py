"""The stored figures, and what differs from them.

A figure must be the same to the last digit on the kind of CPU on which it was stored. On another
one, mathematical libraries may choose other instructions and round differently: `REL` is allowed,
and the hash of a trial's numbers is another one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tests.golden.figures import Figure

FOLDER = Path(__file__).parent
REL = 1e-7


def simd() -> list[str]:
    """Instruction sets that numpy uses on this CPU."""
    found: list[str] = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return found


def save(name: str, figures: Mapping[str, Figure]) -> None:
    """Store figures as NAME.json, one a line."""
    text = json.dumps({"simd": " ".join(simd()), "figures": figures}, indent=0, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def differences(name: str, found: Mapping[str, Figure], rel: float | None = None) -> list[str]:
    """A line for every figure that is not as in NAME.json; `rel` replaces the tolerance."""
    stored = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    if rel is None:
        rel = 0.0 if stored["simd"] == " ".join(simd()) else REL
    return list(compare(stored["figures"], found, rel))


def compare(
    stored: Mapping[str, Figure], found: Mapping[str, Figure], rel: float = 0.0
) -> Iterator[str]:
    """A line for every figure that differs by more than `rel`, or that only one side has."""
    for name in dict.fromkeys((*stored, *found)):
        was, now = (side.get(name, "missing") for side in (stored, found))
        if rel and name.endswith(".fingerprint") and "missing" not in (was, now):
            continue
        if not _same(was, now, rel):
            yield f"{name}: stored {was}, found {now}"


def _same(was: Figure, now: Figure, rel: float) -> bool:
    if isinstance(was, float) and isinstance(now, float):
        return was == now or math.isclose(was, now, rel_tol=rel, abs_tol=rel * 1e-3)
    return type(was) is type(now) and was == now
