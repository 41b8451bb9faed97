"""Which sequences make up which global batch.

Shape suffixes: _B sequences of the global batch, _BD sequences x positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.errors import InputError

IntArray = NDArray[np.int64]


def seeded_order(count: int, seed: int, stream: int = 0) -> IntArray:
    """A permutation of 0..count-1 that depends on seed and stream alone.

    Philox's raw words are the same in every version of numpy; `Generator.permutation` need not be.
    """
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


class DataOrder:
    """The training sequences in a new seeded order each epoch, cut into batches.

    A batch may begin in one epoch and end in the next, so that every sequence comes exactly once
    per epoch and none is dropped. Any step can be asked for at any time.
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
        parts = [self._of(int(e))[place_B[epoch_B == e]] for e in np.unique(epoch_B)]
        return np.concatenate(parts)

    def _of(self, epoch: int) -> IntArray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, seeded_order(self.sequences, self.seed, epoch)
        return self._order


def attended(tokens_BD: NDArray[Any], pad_id: int) -> NDArray[np.bool_] | None:
    """Positions that may be attended to, or None where none is padding (the fast path).

    A sequence of padding alone attends to itself: a softmax over nothing would be NaN.
    """
    attend_BD: NDArray[np.bool_] = tokens_BD != pad_id
    if attend_BD.all():
        return None
    attend_BD[~attend_BD.any(1)] = True
    return attend_BD
