"""What stands at a masked position instead of its token.

Shape suffixes: _B sequences of the global batch, _BD sequences x positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def bert(
    tokens_BD: IntArray,
    mask_BD: BoolArray,
    rng: np.random.Generator,
    mask_id: int,
    vocabulary_size: int,
) -> IntArray:
    """[MASK] at 80 %, a random symbol at 10 %, 10 % kept (Devlin et al. 2019, section 3.1)."""
    u_BD = rng.random(mask_BD.shape)
    random_BD = rng.integers(vocabulary_size, size=mask_BD.shape)
    inputs_BD = np.where(mask_BD, mask_id, tokens_BD)
    inputs_BD = np.where(mask_BD & (u_BD >= 0.8), random_BD, inputs_BD)
    return np.where(mask_BD & (u_BD >= 0.9), tokens_BD, inputs_BD)


def swap(
    tokens_BD: NDArray[Any], mask_BD: BoolArray, observed_BD: BoolArray, rng: np.random.Generator
) -> IntArray:
    """The value of the same column in another row of the batch: each column is shuffled.

    Only observed values are dealt out, each once (VIME, Yoon et al. 2020, NeurIPS).
    """
    keys_BD = np.where(observed_BD, rng.random(mask_BD.shape), 2.0)
    dealt_BD = np.argsort(keys_BD, axis=0)
    place_BD = np.maximum(np.cumsum(observed_BD, axis=0) - 1, 0)
    source_BD = np.take_along_axis(dealt_BD, place_BD, axis=0)
    return np.where(mask_BD, np.take_along_axis(tokens_BD, source_BD, axis=0), tokens_BD)
