"""How often tests repeat a simulation: few times in CI, often in `make calibrate`."""

from __future__ import annotations

import os

FULL = os.environ.get("MPTUNE_SIMULATIONS") == "full"


def repetitions(few: int, full: int) -> int:
    """`full` if the environment variable MPTUNE_SIMULATIONS is `full`, else `few`."""
    return full if FULL else few
