"""A cosine schedule between two policies."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

from mptune.policies._schedules import Ramp


class CosineSchedule(Ramp):
    """Parameters change along half a cosine: slowly at first, fast halfway, slowly at the end.

    Source: the ramp of SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983) for a mask rate, as
    in Ankner et al. 2023, arXiv 2305.15096.
    """

    kind: Literal["cosine_schedule"] = "cosine_schedule"

    def share(self, progress: float) -> float:
        return (1 - cos(pi * progress)) / 2
