"""Text: what is held out, what is observed, and what is said about broken input."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from pydantic import ValidationError

from mptune.spec import build


def text(folder, source="*.txt", **options):
    return build("data", {"kind": "text", "source": source, "length": 8, **options}).resolved(
        folder
    )


def write(folder, **files):
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.txt").write_bytes(raw)


def decoded(split):
    """The text of each document of a split of bytes."""
    return {
        bytes(split.tokens[split.documents == d][split.observed[split.documents == d]].tolist())
        for d in np.unique(split.documents)
    }


@pytest.fixture
def corpus(tmp_path):
    """Twenty distinct documents of 5 to 24 bytes, one of them twice."""
    files = {f"d{i:02d}": f"{i:04d}" + "x" * (i + 1) for i in range(20)}
    write(tmp_path, **files, again=files["d03"])
    return tmp_path


def test_documents_are_in_one_split_only(corpus):
    table = text(corpus, heldout=0.3).prepare(corpus / "cache")
    train, heldout = decoded(table.train), decoded(table.heldout)
    assert not train & heldout
    assert len(train) == table.groups["train"] == 14
    assert len(heldout) == table.groups["heldout"] == 6
    expected = {f"{i:04d}{'x' * (i + 1)}".encode() for i in range(20)}
    assert train | heldout == expected


def test_the_split_depends_on_names_and_seed_only(corpus):
    def heldout(**options):
        return decoded(text(corpus, heldout=0.3, **options).prepare(corpus / "cache").heldout)

    first = heldout()
    assert heldout(seed=1) != first
    for file in corpus.glob("*.txt"):
        file.write_bytes(file.read_bytes() + b"!")
    assert heldout() == {content + b"!" for content in first}


def test_rows_are_padded_and_padding_is_not_observed(tmp_path):
    write(tmp_path, a="0123456789", b="01234567", c="abc")
    table = text(tmp_path, source=["a.txt", "b.txt"], heldout_source="c.txt", length=2).prepare(
        tmp_path / "cache"
    )
    assert table.train.observed.all()
    assert table.heldout.tokens.tolist() == [[97, 98], [99, table.pad_id]]
    assert table.heldout.observed.tolist() == [[True, True], [True, False]]
    assert table.train.documents.tolist() == [0] * 5 + [1] * 4
    assert table.bytes_per_token == 1


def test_heldout_documents_are_dropped_from_training(tmp_path):
    write(tmp_path, a="first document", b="second document")
    table = text(tmp_path, heldout_source="b.txt").prepare(tmp_path / "cache")
    assert decoded(table.train) == {b"first document"}


def test_unknown_characters_are_not_observed(tmp_path):
    write(tmp_path, a="abcé", b="aéxa" * 2)
    table = text(
        tmp_path, source="a.txt", heldout_source="b.txt", length=4, tokenizer="characters"
    ).prepare(tmp_path / "cache")
    assert table.vocabulary_size == 4
    assert table.heldout.tokens.tolist() == [[0, 3, table.pad_id, 0]] * 2
    assert table.heldout.observed.tolist() == [[True, True, False, True]] * 2
    assert table.bytes_per_token == pytest.approx(4 / 3)  # a, é and a are 1 + 2 + 1 bytes
    assert "2 held-out characters unknown" in table.description


@pytest.mark.parametrize(("character", "size"), [("a", 1), ("é", 2), ("€", 3), ("😀", 4)])
def test_bytes_per_character(tmp_path, character, size):
    write(tmp_path, a=character, b=character * 3)
    table = text(
        tmp_path, source="a.txt", heldout_source="b.txt", length=1, tokenizer="characters"
    ).prepare(tmp_path / "cache")
    assert table.bytes_per_token == size


def test_sequences_of_unknown_characters_only_are_left_out(tmp_path):
    write(tmp_path, a="ab", b="abxyba")
    table = text(
        tmp_path, source="a.txt", heldout_source="b.txt", length=2, tokenizer="characters"
    ).prepare(tmp_path / "cache")
    assert table.heldout.tokens.tolist() == [[0, 1], [1, 0]]


def test_lines_and_paragraphs_can_be_documents(tmp_path):
    write(tmp_path, a="one\ntwo\n\nthree\nfour\n\none\ntwo\n")
    lines = text(tmp_path, documents="line", heldout=0.5).prepare(tmp_path / "cache")
    assert decoded(lines.train) | decoded(lines.heldout) == {
        b"one\n",
        b"two\n",
        b"three\n",
        b"four\n",
    }
    paragraphs = text(tmp_path, documents="paragraph", heldout=0.5, length=4)
    # The first and the last paragraph are the same, so one of them counts.
    assert sum(paragraphs.prepare(tmp_path / "cache").groups.values()) == 2


def test_subsets_are_rows_of_the_whole_in_order(corpus):
    whole = text(corpus, heldout=0.3).prepare(corpus / "cache")
    part = text(corpus, heldout=0.3, max_train_sequences=7, max_heldout_sequences=3).prepare(
        corpus / "cache"
    )
    assert (len(part.train), len(part.heldout)) == (7, 3)
    for name in ("train", "heldout"):
        drawn, rows = (
            [(d, *r) for d, r in zip(t.documents, t.tokens.tolist(), strict=True)]
            for t in (getattr(part, name), getattr(whole, name))
        )
        assert set(drawn) <= set(rows)
        assert [row[0] for row in drawn] == sorted(row[0] for row in drawn)


def test_hash_follows_content_and_options_not_place(corpus, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in corpus.glob("*.txt"):
        (moved / file.name).write_bytes(file.read_bytes())
    first = text(corpus).prepare(tmp_path / "cache").hash
    assert text(moved).prepare(tmp_path / "cache").hash == first
    assert text(corpus, length=9).prepare(tmp_path / "cache").hash != first
    write(moved, d00="changed")
    assert text(moved).prepare(tmp_path / "cache").hash != first


def prepare_hash(arguments):
    folder, cache = arguments
    return text(folder).prepare(cache).hash


def test_processes_agree(corpus):
    with ProcessPoolExecutor(2) as pool:
        first, second = pool.map(prepare_hash, [(corpus, corpus / "cache")] * 2)
    assert first == second
    assert [p.name for p in (corpus / "cache").iterdir()] == [first]


def test_folders_are_read_without_hidden_files(tmp_path):
    for name in ("src/a", "src/deep/b", "src/.git/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name * 5)
    table = text(tmp_path, source="src").prepare(tmp_path / "cache")
    assert sum(table.groups.values()) == 2


def test_standard_library_needs_no_download(tmp_path):
    data = text(tmp_path, source="python-stdlib", length=64, max_train_sequences=50)
    table = data.prepare(tmp_path / "cache")
    assert data.words() == "python-stdlib, bytes, D = 64"
    assert table.groups["train"] > 300
    assert b"import" in bytes(table.heldout.tokens[table.heldout.observed].tolist())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("d00.tx", r"source: no such file: .*d00.tx; did you mean 'd00.txt'\?"),
        ("*.csv", r"source: no file matches .*\*.csv"),
        ("nowhere/a.txt", "source: no such file: .*nowhere/a.txt$"),
    ],
)
def test_check_finds_missing_files(corpus, source, message):
    with pytest.raises(ValueError, match=message):
        text(corpus, source=source).check()


def test_check_names_the_held_out_source(corpus):
    with pytest.raises(ValueError, match="heldout_source: no such file"):
        text(corpus, heldout_source="none.txt").check()


def test_bad_utf_8_names_file_and_byte(tmp_path):
    write(tmp_path, a="fine text", b=b"ab\ncd\xff")
    data = text(tmp_path, tokenizer="characters", documents="line")
    with pytest.raises(ValueError, match=r"b\.txt:2: byte 2 is not UTF-8; use tokenizer: bytes"):
        data.prepare(tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a": ""}, {}, r"source: .*\*.txt holds no text"),
        ({"a": " \n"}, {}, "holds no text"),
        ({"a": "one document"}, {}, "is one document, of which none can be held out; give more"),
        ({"a": "long enough", "b": "1"}, {"heldout_source": "b.txt"},
         "1 held-out sequence of 8 bytes; scoring needs at least 2"),
        ({"a": "the same text"}, {"heldout_source": "a.txt"}, "nothing is left to train on"),
    ],
)  # fmt: skip
def test_too_little_text(tmp_path, files, options, message):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message) as caught:
        text(tmp_path, **options).prepare(tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [3, [], "", ["a", 1]])
def test_source_is_a_path_or_several(source):
    with pytest.raises(ValidationError, match="is not a path, a glob or a list of them"):
        build("data", {"kind": "text", "source": source})
