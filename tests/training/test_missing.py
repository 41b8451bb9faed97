"""Which values are taken away before scoring, and that they never change."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.spec.schema import Missing
from mptune.training.scoring import removed

PINNED = [5, 8, 10, 14]
"""Removed of 21 positions; must never change."""

OBSERVED = np.arange(40) < np.array([[40], [21], [2], [1], [0]])


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_an_exact_share_goes_and_something_stays(kind: str, fraction: float) -> None:
    gone = removed(OBSERVED, Missing(fraction=fraction, kind=kind), seed=1)
    lengths = OBSERVED.sum(1)
    expected = np.minimum(np.rint(fraction * lengths), lengths - 1).clip(0)
    assert not (gone & ~OBSERVED).any()
    assert gone.sum(1).tolist() == expected.tolist()


def test_a_block_is_one_stretch_of_what_is_observed() -> None:
    holes = OBSERVED & (np.arange(40) % 5 != 0)
    gone = removed(holes, Missing(fraction=0.4, kind="block"), seed=1)
    scattered = removed(holes, Missing(fraction=0.4, kind="random"), seed=1)

    def stretches(lost: np.ndarray) -> list[int]:
        """Runs of neighbours among the observed positions of the two longest sequences."""
        return [
            1 + int((np.diff(np.flatnonzero(gone_D[row_D])) > 1).sum())
            for row_D, gone_D in zip(holes[:2], lost[:2], strict=True)
        ]

    assert gone.sum(1)[:2].tolist() == [13, 6], "0.4 of 32 and of 16 observed positions"
    assert stretches(gone) == [1, 1]
    assert min(stretches(scattered)) > 1


def test_starts_and_places_are_uniform() -> None:
    many = np.ones((20_000, 6), bool)
    block = removed(many, Missing(fraction=0.5, kind="block"), seed=2)
    starts = np.bincount(block.argmax(1), minlength=4) / len(many)
    assert starts == pytest.approx(np.full(4, 0.25), abs=0.015)
    anywhere = removed(many, Missing(fraction=0.5), seed=2)
    assert anywhere.mean(0) == pytest.approx(np.full(6, 0.5), abs=0.015)


def test_it_is_a_pure_function() -> None:
    gone = removed(OBSERVED, Missing(fraction=0.2), seed=7)
    assert np.flatnonzero(gone[1]).tolist() == PINNED
    assert (gone != removed(OBSERVED, Missing(fraction=0.2), seed=8)).any()
    assert (gone != removed(OBSERVED, Missing(fraction=0.2), seed=7, number=1)).any()
