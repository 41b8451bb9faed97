"""Values taken away before scoring: missing to the model, and not scored.

The same values for every trial, and on every version of numpy: a pure function of the sequences,
the section and the seed.

Shape suffixes: N sequences, D positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mptune.spec.schema import Missing

BoolArray = NDArray[np.bool_]

STREAM = 0x6D697373
"""Counter word that keeps this stream apart from other uses of the same seed."""


def removed(observed_ND: BoolArray, missing: Missing, seed: int, number: int = 0) -> BoolArray:
    """Which observed positions go: an exact share of each sequence's, and at least one stays.

    `number` tells several injections of one study apart.
    """
    length_N1 = observed_ND.sum(1, keepdims=True)
    count_N1 = np.minimum(np.rint(missing.fraction * length_N1), np.maximum(length_N1 - 1, 0))
    uniform_ND = _uniforms(observed_ND.shape, seed, number)
    place_ND = {"random": _shuffled, "block": _from_a_start}[missing.kind](
        observed_ND, uniform_ND, length_N1, count_N1
    )
    gone_ND: BoolArray = observed_ND & (place_ND >= 0) & (place_ND < count_N1)
    return gone_ND


def _uniforms(shape: tuple[int, ...], seed: int, number: int) -> NDArray[np.float64]:
    """Philox's raw words are the same in every version of numpy."""
    bits = np.random.Philox(key=np.array([seed, STREAM + number], np.uint64))
    found: NDArray[np.float64] = bits.random_raw(int(np.prod(shape))).reshape(shape) / 2.0**64
    return found


def _shuffled(
    observed_ND: BoolArray,
    uniform_ND: NDArray[np.float64],
    length_N1: NDArray[np.int64],
    count_N1: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The place of each observed position in a random order."""
    found: NDArray[np.int64] = np.where(observed_ND, uniform_ND, 2.0).argsort(1).argsort(1)
    return found


def _from_a_start(
    observed_ND: BoolArray,
    uniform_ND: NDArray[np.float64],
    length_N1: NDArray[np.int64],
    count_N1: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The place of each observed position after a random start; negative before it."""
    start_N1 = np.floor(uniform_ND[:, :1] * (length_N1 - count_N1 + 1))
    found: NDArray[np.int64] = (observed_ND.cumsum(1) - 1 - start_N1).astype(np.int64)
    return found
