"""Token tables on disk: whole or not at all, and the same for every process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile

import numpy as np
import pytest

from mptune.data._table import (
    Meta,
    Split,
    SplitWriter,
    TokenTable,
    build_table,
    drop_rows,
    row_dtype,
    write_table,
)
from mptune.errors import InputError

META = Meta(
    vocabulary_size=255,
    length=3,
    description="made up",
    groups={"train": 1, "heldout": 1},
    grouped_by="row",
)


def contents(meta=META):
    observed = np.array([[True, True, False], [True, True, True]])
    split = Split(np.arange(6).reshape(2, 3), observed, np.zeros(2, np.int32))
    return meta, split, split


def store(path, make):
    """The table at `path`, made in memory by `make` (meta, train, held-out) unless it is there."""

    def write(aside):
        meta, train, heldout = make()
        write_table(aside, {"train": train, "heldout": heldout}, meta)

    return build_table(path, write)


def store_slowly(path, barrier, made):
    def make():
        with made.get_lock():
            made.value += 1
        return contents()

    barrier.wait(30)
    store(path, make)


def test_round_trip(tmp_path):
    table = store(tmp_path / "abc", contents)
    assert (table.hash, table.length, table.vocabulary_size) == ("abc", 3, 255)
    assert (table.mask_id, table.pad_id, table.total_vocabulary) == (255, 256, 257)
    assert table.train.tokens.tolist() == [[0, 1, 256], [3, 4, 5]]
    assert table.train.tokens.dtype == np.uint16
    assert table.heldout.observed.sum() == 5
    assert table == TokenTable.open(str(tmp_path / "abc"))


def test_is_memory_mapped_and_read_only(tmp_path):
    tokens = store(tmp_path / "abc", contents).train.tokens
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0, 0] = 1


@pytest.mark.parametrize(("symbols", "dtype"), [(2, "u1"), (254, "u1"), (255, "u2"), (70000, "u4")])
def test_dtype_holds_mask_and_padding(symbols, dtype):
    assert row_dtype(symbols) == np.dtype(dtype)


def test_is_made_once(tmp_path):
    store(tmp_path / "abc", contents)

    def never():
        raise AssertionError("made again")

    assert store(tmp_path / "abc", never).length == 3


@pytest.mark.parametrize("error", [ValueError("broken source"), OSError("disk full")])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)):
        store(tmp_path / "abc", fail)
    assert list(tmp_path.iterdir()) == []
    assert store(tmp_path / "abc", contents).length == 3


def test_of_two_processes_one_makes_it_and_both_have_it(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, made = context.Barrier(2), context.Value("i", 0)
    both = [
        context.Process(target=store_slowly, args=(tmp_path / "abc", barrier, made))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert made.value == 1
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]
    assert len(TokenTable.open(tmp_path / "abc").train) == 2


def write_half_and_die(path):
    def write(aside):
        (aside / "train_tokens.npy").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    build_table(path, write)


def test_what_a_killed_process_left_is_swept_away_and_never_used(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=write_half_and_die, args=(tmp_path / "abc",)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".abc.")
    assert len(store(tmp_path / "abc", contents).train) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]


def test_rows_are_appended_and_dropped_without_being_in_memory_at_once(tmp_path):
    meta, split, _ = contents()
    with SplitWriter(tmp_path, "train", meta.length, meta.vocabulary_size) as writer:
        for _ in range(3):
            writer.append(split)
    drop_rows(tmp_path, "train", np.array([1, 4]), ("tokens", "observed", "groups"))
    kept = np.load(tmp_path / "train_tokens.npy", mmap_mode="r")
    assert kept.tolist() == [[3, 4, 5], [0, 1, 256]]


def test_no_table(tmp_path):
    with pytest.raises(FileNotFoundError):
        TokenTable.open(tmp_path)


def test_a_lock_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    """Who can write there could put a link in the place of a lock."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    (tmp_path / f"mptune-locks-{mine + 1}").mkdir()
    with pytest.raises(InputError, match="belongs to another user"):
        store(tmp_path / "table", contents)
