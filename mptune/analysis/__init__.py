"""Results of a study: comparison of arms, selection, laws over size, domains, compute, KPI.

The names here compare arms; every other question has a module of its own.
"""

from mptune.analysis.arms import (
    ArmScores,
    Difference,
    Selection,
    Verdict,
    compare,
    selection_probabilities,
)

__all__ = [
    "ArmScores",
    "Difference",
    "Selection",
    "Verdict",
    "compare",
    "selection_probabilities",
]
