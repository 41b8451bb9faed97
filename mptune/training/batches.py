"""Which sequences make up which global batch, and how these are dealt out, packed and padded.

Nothing here changes the loss: only which forward a sequence is in, where it lies there, and what is
computed besides. Tensor shapes are static where possible, because kernels are chosen, graphs
compiled and memory laid out by shape.

Shape suffixes: B sequences of the global batch, m of a part, R packed rows, D positions of either,
K masked positions, M mask counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.errors import InputError
from mptune.lml.groups import BoolArray, IntArray
from mptune.policies.base import MaskPolicy

PHASES = 16
"""Parts of a training, each with a head shape of its own where the law of the mask count moves."""

SHAPES, TILE = 16, 8
"""Most head shapes of a phase where sequences differ in length; tensor cores work in eights."""


def seeded_order(count: int, seed: int, stream: int = 0) -> IntArray:
    """A permutation of 0..count-1 that depends on seed and stream alone.

    Philox's raw words are the same in every version of numpy; `Generator.permutation` need not be.
    """
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


class DataOrder:
    """The training sequences in a new seeded order each epoch, cut into batches.

    A batch may begin in one epoch and end in the next, so every sequence comes exactly once per
    epoch and none is dropped. Steps may be asked for in any order.

    Raises:
        InputError: there are no sequences.
    """

    def __init__(self, sequences: int, batch_size: int, seed: int) -> None:
        if sequences < 1:
            raise InputError("the training split has no sequences")
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def rows(self, step: int) -> IntArray:
        """Rows [B] of the training split that make up the batch of a step, from step 0 on."""
        positions_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch_B, place_B = np.divmod(positions_B, self.sequences)
        parts = []
        for epoch in np.unique(epoch_B):
            if epoch != self._epoch:
                self._epoch = int(epoch)
                self._order = seeded_order(self.sequences, self.seed, self._epoch)
            parts.append(self._order[place_B[epoch_B == epoch]])
        return np.concatenate(parts)


def attended(tokens_BD: NDArray[Any], pad_id: int) -> BoolArray | None:
    """Positions that may be attended to, or None if none is padding (the fast path).

    A sequence of padding alone attends to itself: a softmax over nothing would be NaN.
    """
    attend_BD: BoolArray = tokens_BD != pad_id
    if attend_BD.all():
        return None
    attend_BD[~attend_BD.any(1)] = True
    return attend_BD


def deal(counts_B: IntArray, parts: int) -> list[IntArray]:
    """Rows of the batch for each of some equal parts, whose masked positions differ little.

    Sorted by their counts, one row of every `parts` goes to each part, in alternating order. Which
    part a row is in changes no sum over the batch.
    """
    order_B = np.argsort(-counts_B, kind="stable").reshape(-1, parts)
    order_B[1::2] = order_B[1::2, ::-1]
    return [np.sort(rows) for rows in order_B.T]


@dataclass(frozen=True)
class Packing:
    """Where each sequence lies when several short ones share a row, to compute less padding.

    Attributes:
        row_B: the packed row of each sequence.
        start_B: its first position there.
        length_B: its positions, without trailing padding.
        rows: R.
        width: D.
    """

    row_B: IntArray
    start_B: IntArray
    length_B: IntArray
    rows: int
    width: int

    @classmethod
    def of(cls, attend_BD: BoolArray) -> Packing:
        """First fit, longest first (Johnson 1973); at most 11/9 of the fewest rows, plus one.

        Args:
            attend_BD: positions that are not padding.
        """
        batch, width = attend_BD.shape
        length_B = np.where(attend_BD.any(1), width - attend_BD[:, ::-1].argmax(1), 1)
        row_B, start_B = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        filled: list[int] = []
        for i in np.argsort(-length_B, kind="stable").tolist():
            need = int(length_B[i])
            row = next((r for r, used in enumerate(filled) if used + need <= width), len(filled))
            if row == len(filled):
                filled.append(0)
            row_B[i], start_B[i] = row, filled[row]
            filled[row] += need
        return cls(row_B, start_B, length_B, len(filled), width)

    def moved(self, values_BD: NDArray[Any], fill: int) -> NDArray[Any]:
        """Values of the sequences at their places in the packed rows, [R, D]."""
        out_RD = np.full((self.rows, self.width), fill, values_BD.dtype)
        inside_BD = np.arange(self.width) < self.length_B[:, None]
        out_RD.flat[self.flat(inside_BD)] = values_BD[inside_BD]
        return out_RD

    def flat(self, chosen_BD: BoolArray) -> IntArray:
        """Flat indices in the packed rows of chosen positions, in row-major order of these."""
        first_B = self.row_B * self.width + self.start_B
        sequence_K, place_K = np.nonzero(chosen_BD)
        return np.asarray(first_B[sequence_K] + place_K)

    def documents(self) -> IntArray:
        """The sequence at each position, [R, D]; -1 at padding."""
        batch = len(self.row_B)
        numbers_BD = np.broadcast_to(np.arange(batch)[:, None], (batch, self.width))
        return self.moved(numbers_BD, -1)

    def places(self) -> IntArray:
        """The position inside its sequence, [R, D]; 0 at padding."""
        batch = len(self.row_B)
        return self.moved(np.broadcast_to(np.arange(self.width), (batch, self.width)), 0)


def most_masked(law: MaskPolicy, length: int, progress: float, sequences: int) -> int:
    """The most masked positions that a dealt part of full sequences has, whatever is drawn.

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

    The masked positions of a batch vary little, because its counts are drawn systematically. Spare
    rows have weight 0.

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
        """Rows for `masked` positions, at least as many.

        Args:
            masked: positions of the part that are masked.
            full: every sequence of the batch has all its positions observed; the result is then
                always the same.
        """
        step = TILE * -(-self.most // (SHAPES * TILE))
        return step * -(-max(masked, self.most if full else 1) // step)
