"""Several short sequences to a row, so that no compute goes into padding.

Packing changes where a sequence lies, never which sequences a batch has, what is masked or how it
is weighted: the loss is that of the unpacked batch.

Shape suffixes: B sequences, R packed rows, D positions of either, K masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Packing:
    """Where each sequence of a batch lies.

    Attributes:
        row_B: the packed row of each sequence.
        start_B: its first position there.
        length_B: its positions, trailing padding left out.
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
        """The sequence at each position, [R, D]; padding is a document of its own, -1."""
        batch = len(self.row_B)
        numbers_BD = np.broadcast_to(np.arange(batch)[:, None], (batch, self.width))
        return self.moved(numbers_BD, -1)

    def places(self) -> IntArray:
        """The position inside its sequence, [R, D]; 0 at padding."""
        batch = len(self.row_B)
        return self.moved(np.broadcast_to(np.arange(self.width), (batch, self.width)), 0)
