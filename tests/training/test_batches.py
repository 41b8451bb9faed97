"""Every sequence once per epoch, whatever the batch size."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mptune.data._table import Split
from mptune.errors import InputError
from mptune.training import feed
from mptune.training.feed import (
    DataOrder,
    Sources,
    attended,
    read_at_random,
    scattered,
    seeded_order,
)


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


def sources(weights, sizes=(40, 7, 5), batch_size=8, seed=1):
    """Sources whose tokens say which one they are of."""
    names = ("home", "old", "other")[: len(weights)]
    splits = [
        Split(np.full((n, 2), 100 * i) + np.arange(n)[:, None], np.ones((n, 2), bool), np.zeros(n))
        for i, n in enumerate(sizes)
    ]
    weighted = {n: (s, w) for n, s, w in zip(names, splits, weights, strict=False)}
    return Sources(weighted, batch_size, seed)


@pytest.mark.parametrize("weights", [(1, 0.25), (1, 0.25, 0.1), (1, 0, 0.5), (1, 3.3, 0.01)])
def test_each_source_has_its_share_of_any_number_of_rows_to_within_one(weights):
    mixed, count = sources(weights), np.zeros(len(weights))
    for step in range(200):
        of_source_B = mixed.batch(step)[0][:, 0] // 100
        assert len(of_source_B) == 8
        count += np.bincount(of_source_B, minlength=len(weights))
        assert list(mixed.drawn(step + 1).values()) == count.tolist()
        expected = 8 * (step + 1) * np.array(weights) / sum(weights)
        assert (abs(count - expected) <= 1).all()


def test_every_source_has_its_epochs_and_a_batch_does_not_depend_on_earlier_ones():
    mixed = sources((1, 0.25, 0.1))
    batches = [mixed.batch(step)[0][:, 0] for step in range(100)]
    there = np.concatenate(batches)
    for number, size in enumerate((40, 7, 5)):
        rows = there[there // 100 == number] - 100 * number
        epochs = rows[: len(rows) // size * size].reshape(-1, size)
        assert len(epochs) > 3
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    back = sources((1, 0.25, 0.1))
    assert all((back.batch(n)[0][:, 0] == batches[n]).all() for n in reversed(range(100)))
    assert not all((sources((1, 0.25, 0.1), seed=2).batch(n)[0][:, 0] == batches[n]).all()
                   for n in range(9))  # fmt: skip


def test_a_single_source_has_the_rows_of_its_order():
    alone, order = sources((1,)), DataOrder(40, 8, seed=1)
    assert all((alone.batch(n)[0][:, 0] == order.rows(n)).all() for n in range(20))


def test_rows_are_unseen_until_one_source_begins_again():
    mixed = sources((1, 1))  # 4 rows of each in a batch, and the second has 7
    assert [mixed.unseen(step) for step in range(3)] == [True, False, False]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000, 4097])
def test_scattered_places_are_a_permutation_in_no_order(count):
    all_of = scattered(np.arange(count), count, seed=3)
    assert sorted(all_of.tolist()) == list(range(count))
    if count >= 1000:
        places = np.arange(count)
        assert abs(np.corrcoef(places, all_of)[0, 1]) < 0.1
        assert (np.diff(all_of) == 1).sum() < 10
        # Neighbours land anywhere: the distance of two random places is a third of all on average.
        assert abs(np.abs(np.diff(all_of)).mean() / count - 1 / 3) < 0.05
        others = (scattered(places, count, 3, stream=1), scattered(places, count, 4))
        assert max((all_of == other).sum() for other in others) < 10


def test_scattered_places_are_the_same_everywhere():
    assert scattered(np.arange(6), 10**9, seed=0).tolist() == [
        360336115, 62279773, 409781486, 116668796, 759797367, 193800179,
    ]  # fmt: skip


def test_a_batch_of_a_billion_rows_is_drawn_at_once():
    order = DataOrder(10**9, 512, seed=1)
    began = time.perf_counter()
    rows = np.concatenate([order.rows(step) for step in range(100)])
    assert time.perf_counter() - began < 2
    assert len(set(rows.tolist())) == len(rows)
    assert (rows < 10**9).all()


def test_many_rows_come_once_per_epoch_too(monkeypatch):
    monkeypatch.setattr(feed, "MOST_SORTED", 9)
    order = DataOrder(10, 4, seed=1)
    rows = np.concatenate([order.rows(step) for step in range(5)])
    assert [sorted(part.tolist()) for part in (rows[:10], rows[10:])] == [list(range(10))] * 2
    assert rows[:10].tolist() != rows[10:].tolist()


def test_a_mapped_table_is_read_at_random(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12).reshape(4, 3))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    read_at_random(Split(rows, rows > 0, np.zeros(4, np.int32)))  # one mapped, one not
    assert rows[2].tolist() == [6, 7, 8]
