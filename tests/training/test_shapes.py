"""The rows of the head: enough for every draw, few different numbers, and no more than a bit."""

from __future__ import annotations

import numpy as np
import pytest

from mptune import plugins
from mptune.spec.schema import build
from mptune.training.feed import PHASES, SHAPES, HeadRows, deal, most_masked

LENGTH, BATCH = 64, 32
CASES = [
    pytest.param(policy, id=f"{name}-{i}")
    for name in plugins.modules("policies")
    for i, policy in enumerate(plugins.load("policies", name).examples())
]


def drawn_parts(policy, progress, sequences):
    """Masked positions of every dealt part of many batches."""
    rng, lengths_B = np.random.default_rng(0), np.full(BATCH, LENGTH)
    batches = [policy.draw_counts(lengths_B, progress, rng) for _ in range(40)]
    return [int(c[rows].sum()) for c in batches for rows in deal(c, BATCH // sequences)]


@pytest.mark.parametrize("policy", CASES)
@pytest.mark.parametrize("sequences", [BATCH, 8])
def test_the_bound_holds_for_every_draw_and_is_tight(policy, sequences):
    """The masked positions vary by less than the longest count of one sequence."""
    for progress in (0.0, 0.4, 1.0):
        drawn = drawn_parts(policy, progress, sequences)
        most = most_masked(policy, LENGTH, progress, sequences)
        possible = np.flatnonzero(policy.support(LENGTH, progress)) + 1
        assert max(drawn) <= most
        assert min(drawn) >= most - (possible[-1] - possible[0]) - 1e-9


@pytest.mark.parametrize("policy", CASES)
def test_full_sequences_have_one_shape_in_a_phase(policy):
    for phase in (0, 7, PHASES - 1):
        shapes = {
            HeadRows.of(policy, LENGTH, s, 8).padded(masked, full=True)
            for s in (phase + np.array([0.0, 0.3, 0.99])) / PHASES
            for masked in drawn_parts(policy, s, 8)
        }
        assert len(shapes) == 1


def test_what_does_not_vary_has_no_spare_rows_to_speak_of():
    fixed = build("policy", {"kind": "fixed", "rate": 0.25})
    rows = HeadRows.of(fixed, LENGTH, 0.5, BATCH)
    assert rows.most == BATCH * LENGTH // 4
    assert rows.padded(rows.most, full=True) == rows.most


def test_sequences_of_all_lengths_have_few_shapes():
    rows = HeadRows(most=1000)
    shapes = {rows.padded(masked, full=False) for masked in range(1001)}
    assert len(shapes) <= SHAPES
    assert all(rows.padded(m, full=False) - m < 1000 / SHAPES + 8 for m in range(1, 1001))
    assert rows.padded(1200, full=True) >= 1200


def test_every_sequence_is_dealt_to_one_part():
    counts_B = np.random.default_rng(0).integers(1, 100, size=24)
    parts = deal(counts_B, 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(24))
    sums = [counts_B[rows].sum() for rows in parts]
    assert max(sums) - min(sums) < 25
    assert deal(counts_B, 1)[0].tolist() == list(range(24)), "one part is the batch as it is"
