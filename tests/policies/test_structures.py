"""Structures and corruptions: known shapes, known shares, and the wording of their errors."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from mptune.policies._structures import words_of
from mptune.policies.base import draw_batch
from mptune.spec.schema import build

RNG_SEED = 5


def fixed(rate=0.5, **more):
    return build("policy", {"kind": "fixed", "rate": rate, **more})


def masks(policy, rows, length, count, words_BD=None):
    observed_BD = np.ones((rows, length), bool)
    rng = np.random.default_rng(RNG_SEED)
    return policy.draw_masks(observed_BD, np.full(rows, count), rng, words_BD)


def runs(mask_D):
    """Lengths of the runs of masked positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_D.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_spans_have_geometric_lengths():
    units_BD = fixed(structure="span").structure.units(
        (400, 256), np.random.default_rng(RNG_SEED), None
    )
    lengths = np.concatenate([np.unique(u, return_counts=True)[1][:-1] for u in units_BD])
    p = 0.2 * 0.8 ** np.arange(9)
    assert lengths.max() == 10
    # Spans that reach the end of a row are cut, and are left out above.
    assert lengths.mean() == pytest.approx((1 - 0.8**10) / 0.2, rel=0.03)
    assert (lengths == 1).mean() == pytest.approx(p[0], abs=0.01)


def test_spans_make_longer_runs_than_tokens():
    by_structure = {
        s: np.mean([runs(m).mean() for m in masks(fixed(structure=s), 200, 128, 19)])
        for s in ("token", "span")
    }
    assert by_structure["token"] < 1.3
    assert by_structure["span"] > 2.5


def test_every_position_is_masked_as_often_under_spans():
    share_D = masks(fixed(structure="span"), 20000, 24, 6).mean(0)
    assert share_D == pytest.approx(np.full(24, 0.25), abs=0.03)


def test_words_are_masked_whole():
    words_BD = np.broadcast_to(np.repeat(np.arange(4), 4), (50, 16))
    mask_BD = masks(fixed(structure="whole_word"), 50, 16, 8, words_BD)
    per_word = mask_BD.reshape(50, 4, 4).sum(2)
    assert set(per_word.ravel()) == {0, 4}
    assert (per_word.sum(1) == 8).all()


def test_words_of_pieces_and_of_characters():
    starts_and_goes_on = np.array([[False, True, True, False], [True, True, True, False]])
    tokens_BD = np.array([[0, 1, 2, 0, 3, 1, 0, 0]])
    assert words_of(tokens_BD, starts_and_goes_on).tolist() == [[0, 0, 0, 1, 2, 3, 4, 5]]


def test_blocks_of_a_grid():
    structure = {"kind": "block", "columns": 6, "height": 2, "width": 4}
    unit_D = fixed(structure=structure).structure.units((1, 24), np.random.default_rng(0), None)[0]
    assert unit_D.reshape(4, 6).tolist() == [[0] * 4 + [1] * 2] * 2 + [[2] * 4 + [3] * 2] * 2


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("spam", "is not a structure; one of token, span, whole_word, block; did you mean 'span'"),
        ({"kind": "span", "q": 1}, "q"),
        ({"kind": "span", "p": 0}, "greater than 0"),
        ({"kind": "block"}, "columns"),
    ],
)
def test_wrong_structures(structure, message):
    with pytest.raises(ValidationError, match=message):
        fixed(structure=structure)


def test_a_written_structure_keeps_its_parameters():
    policy = fixed(structure={"kind": "span", "p": 0.3})
    assert policy.model_dump()["structure"] == {"kind": "span", "p": 0.3, "longest": 10}
    assert build("policy", policy.model_dump()) == policy


def test_a_structure_that_does_not_fit_the_data():
    with pytest.raises(ValueError, match="30 positions are not whole rows of 7 columns"):
        masks(fixed(structure={"kind": "block", "columns": 7}), 1, 30, 3)
    with pytest.raises(ValueError, match="needs words, which the data does not have"):
        masks(fixed(structure="whole_word"), 1, 30, 3)


def test_swap_shuffles_the_observed_values_of_each_column():
    rng = np.random.default_rng(RNG_SEED)
    observed_BD = rng.random((64, 8)) < 0.8
    tokens_BD = np.where(observed_BD, rng.permuted(np.tile(np.arange(64), (8, 1)), axis=1).T, 99)
    made = draw_batch(
        fixed(1.0, corruption="swap"),
        tokens_BD,
        observed_BD,
        progress=0.0,
        seed=0,
        step=0,
        mask_id=64,
        vocabulary_size=64,
    )
    assert (np.sort(made.inputs_BD, axis=0) == np.sort(tokens_BD, axis=0)).all()
    assert (made.inputs_BD == tokens_BD)[observed_BD].mean() < 0.1


def test_words_say_structure_and_corruption():
    assert fixed(structure="span", corruption="swap").words() == (
        "fixed 50 %, swap corruption, spans to 10"
    )
