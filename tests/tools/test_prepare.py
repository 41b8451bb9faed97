"""Preparing a token table outside a worker."""

from __future__ import annotations

import pytest

from mptune.errors import InputError
from mptune.tools.prepare import prepare_table

LINES = "".join(f"{i} is a line\n" for i in range(20))


def test_relative_paths_start_from_the_base_and_a_second_call_opens_the_same_table(tmp_path):
    (tmp_path / "corpus.txt").write_text(LINES)
    data = {"kind": "text", "source": "corpus.txt", "documents": "line", "length": 8}
    table = prepare_table(data, tmp_path / "cache", tmp_path)
    assert table.length == 8
    assert len(table.train.tokens) > len(table.heldout.tokens) > 0
    (tmp_path / "corpus.txt").touch()
    assert prepare_table(data, tmp_path / "cache", tmp_path).path == table.path


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"kind": "text", "source": "gone.txt"}, r"data: .*gone\.txt"),
        ({"kind": "texts"}, "data: .*texts"),
        ({"kind": "text", "source": "gone.txt", "length": 0}, "data: (.|\n)*length"),
    ],
)
def test_what_is_wrong_is_an_input_error_that_names_it(tmp_path, data, reason):
    with pytest.raises(InputError, match=reason):
        prepare_table(data, tmp_path / "cache", tmp_path)
