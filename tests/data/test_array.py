"""Arrays: what is observed, and what is held out."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.spec.schema import build


def array(folder, values, length=None, **options):
    np.save(folder / "values.npy", values)
    section = {"kind": "array", "source": "values.npy", "length": length or values.shape[1]}
    return build("data", {**section, **options}).resolved(folder)


def test_integers_are_symbols_and_negative_is_missing(tmp_path):
    values = np.random.default_rng(0).integers(-1, 5, (50, 4))
    table = array(tmp_path, values, heldout=0.2).prepare(tmp_path / "cache")
    assert (table.vocabulary_size, len(table.train), len(table.heldout)) == (5, 40, 10)
    back = np.where(table.heldout.observed, table.heldout.tokens.astype(int), -1)
    assert (back == values[table.heldout.groups]).all()
    assert table.log_bin_width == 0


def test_rows_without_values_are_left_out(tmp_path):
    values = np.random.default_rng(0).integers(0, 4, (40, 3))
    values[::2, 1] = values[5] = -1
    table = array(tmp_path, values).prepare(tmp_path / "cache")
    assert len(table.train) + len(table.heldout) == 39
    for split in (table.train, table.heldout):
        assert (split.observed == (values[split.groups] >= 0)).all()
        assert (split.tokens[~split.observed] == table.pad_id).all()


def test_groups_stay_together(tmp_path):
    labels = np.repeat(["a", "b", "c", "d", "e"], 6)
    np.save(tmp_path / "labels.npy", labels)
    table = array(tmp_path, np.zeros((30, 2), int), group="labels.npy", heldout=0.4).prepare(
        tmp_path / "cache"
    )
    assert table.groups == {"train": 3, "heldout": 2}
    assert not set(table.train.groups) & set(table.heldout.groups)


def test_some_group_is_left_to_train_on_and_missing_labels_are_groups_of_their_own(tmp_path):
    np.save(tmp_path / "labels.npy", np.repeat([0.0, 1.0], 6))
    given = {"group": "labels.npy", "heldout": 0.99}
    table = array(tmp_path, np.zeros((12, 2), int), **given).prepare(tmp_path / "cache")
    assert table.groups == {"train": 1, "heldout": 1}
    np.save(tmp_path / "labels.npy", np.repeat([0.0, 1.0, np.nan], 4))
    table = array(tmp_path, np.zeros((12, 2), int), **given | {"heldout": 0.5}).prepare(
        tmp_path / "cache"
    )
    assert table.groups == {"train": 3, "heldout": 3}
    assert table.description.endswith("4 rows without labels, each a group of its own")
    np.save(tmp_path / "labels.npy", np.zeros(12))
    with pytest.raises(ValueError, match=r"labels\.npy is one group, so none can be held out"):
        array(tmp_path, np.zeros((12, 2), int), **given).prepare(tmp_path / "cache")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            np.zeros((9, 3), int),
            {"length": 4},
            "length: is 4, but .* has 3 columns; give length: 3",
        ),
        (np.zeros(9, int), {"length": 3}, r"has shape \[9\]; give \[N, D\]"),
        (np.full((9, 1), "x"), {}, "holds <U1; give integers, or read it as series or tabular"),
        (np.zeros((9, 1)), {}, "holds float64; give integers"),
        (np.zeros((1, 1), int), {}, "0 training and 1 held-out rows"),
        (np.zeros((9, 1), int), {"group": "value.npy"}, "group: no such file.*'values.npy'"),
    ],
)
def test_errors(tmp_path, values, options, message):
    with pytest.raises(ValueError, match=message):
        array(tmp_path, values, **options).prepare(tmp_path / "cache")


def test_not_an_array(tmp_path):
    (tmp_path / "a.npy").write_text("not an array")
    section = {"kind": "array", "source": "a.npy", "length": 1}
    with pytest.raises(ValueError, match=r"source: .*a\.npy is not a \.npy array"):
        build("data", section).resolved(tmp_path).check()
