"""What the trials say: arms against each other, sizes, domains, compute, and a team's own KPI.

The interface proper is the comparison of arms; each other question has a module of its own.
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
