"""A linear schedule between two policies."""

from __future__ import annotations

from typing import Literal

from mptune.policies._schedules import Ramp


class Linear(Ramp):
    """Parameters change linearly with progress, e.g. a mask rate that falls from .50 to .10.

    Source: 0.30 to 0.15, Ankner et al. 2023, arXiv 2305.15096; 0.50 to 0.10, EuroBERT, arXiv
    2503.05500.
    """

    kind: Literal["linear"] = "linear"

    def share(self, progress: float) -> float:
        return progress
