"""How many rows the head computes: as few different numbers as can be, where shapes are to stand.

Kernels are chosen, graphs compiled and memory laid out by shape. The masked positions of a batch
hardly vary, for its counts are drawn by systematic sampling; what is left is filled up with rows
of weight 0.

Shape suffixes: B sequences of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mptune.policies.base import MaskPolicy

IntArray = NDArray[np.int64]

PHASES = 16
"""Parts of a training with a shape of their own, if its law of the mask count moves."""

SHAPES, TILE = 16, 8
"""At most that many shapes of a phase, if sequences differ in length; tensor cores work in
eights."""


def deal(counts_B: IntArray, parts: int) -> list[IntArray]:
    """The rows of a batch for each of some equal parts, with nearly as many masked positions each.

    Sorted by their counts, one row of every `parts` goes to each part, to and fro, like cards.
    Which part a row is in changes no sum over the batch.
    """
    order_B = np.argsort(-counts_B, kind="stable").reshape(-1, parts)
    order_B[1::2] = order_B[1::2, ::-1]
    return [np.sort(rows) for rows in order_B.T]


def most_masked(law: MaskPolicy, length: int, progress: float, sequences: int) -> int:
    """The most masked positions that a dealt part of full sequences has, whatever the draw.

    Systematic draws are Q((i + U) / B), so the g-th smallest of a part of m of them is at most
    Q((g + 1) / m): the sum varies by no more than the longest count less the shortest.

    Args:
        law: what the counts are drawn from.
        length: observed positions of every sequence.
        progress: s in [0, 1].
        sequences: m, of the part.
    """
    upper_m = (np.arange(sequences) + 1) / sequences
    cumulative_M = np.cumsum(law.pmf(length, progress))
    counts_m = 1 + np.searchsorted(cumulative_M[:-1], upper_m - 1e-12, side="left")
    return int(counts_m.sum())


@dataclass(frozen=True)
class HeadRows:
    """How many rows a part's head computes during one phase of a training.

    Attributes:
        most: masked positions that full sequences have at most.
    """

    most: int

    @classmethod
    def of(cls, law: MaskPolicy, length: int, progress: float, sequences: int) -> HeadRows:
        """Those of the phase that this progress is in; arguments as `most_masked`."""
        phase = min(int(progress * PHASES), PHASES - 1)
        ends = (phase / PHASES, (phase + 1) / PHASES)
        return cls(max(most_masked(law, length, end, sequences) for end in ends))

    def padded(self, masked: int, full: bool) -> int:
        """Rows for that many masked positions, at least as many.

        Args:
            masked: positions of the part that are masked.
            full: every sequence of the batch has all its positions observed; then it is always
                the same number.
        """
        step = TILE * -(-self.most // (SHAPES * TILE))
        return step * -(-max(masked, self.most if full else 1) // step)
