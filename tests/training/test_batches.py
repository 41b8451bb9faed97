"""Every sequence once per epoch, whatever the batch size."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.errors import InputError
from mptune.training.feed import DataOrder, attended, seeded_order


@pytest.mark.parametrize(("sequences", "batch_size"), [(10, 5), (10, 4), (7, 16), (3, 1)])
def test_every_epoch_has_every_sequence_once(sequences, batch_size):
    order = DataOrder(sequences, batch_size, seed=1)
    stream = np.concatenate([order.rows(step) for step in range(3 * sequences)])
    epochs = stream[: len(stream) // sequences * sequences].reshape(-1, sequences)
    assert (np.sort(epochs, axis=1) == np.arange(sequences)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_does_not_depend_on_what_was_asked_before():
    order = DataOrder(10, 4, seed=1)
    there = [order.rows(step).tolist() for step in range(9)]
    back = [DataOrder(10, 4, seed=1).rows(step).tolist() for step in reversed(range(9))]
    assert there == back[::-1]
    assert there != [DataOrder(10, 4, seed=2).rows(step).tolist() for step in range(9)]


def test_the_order_is_the_same_on_every_machine():
    assert seeded_order(8, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_no_training_data():
    with pytest.raises(InputError, match="training split has no sequences"):
        DataOrder(0, 4, seed=0)


def test_padding_is_not_attended_to():
    assert attended(np.array([[0, 1], [2, 3]]), pad_id=9) is None
    attend_BD = attended(np.array([[0, 9], [9, 9]]), pad_id=9)
    # A softmax over nothing is NaN, so a sequence of padding attends to itself.
    assert attend_BD.tolist() == [[True, False], [True, True]]
