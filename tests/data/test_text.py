"""Text: what is held out, what is observed, and what is said about broken input."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ProcessPoolExecutor

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from mptune.data._tokenizers import save_for_transformers
from mptune.data.text import documents
from mptune.spec.schema import build


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
        bytes(split.tokens[split.groups == d][split.observed[split.groups == d]].tolist())
        for d in np.unique(split.groups)
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
    assert table.train.groups.tolist() == [0] * 5 + [1] * 4
    assert table.bytes_per_token == 1


def test_heldout_documents_are_dropped_from_training(tmp_path):
    write(tmp_path, a="first document", b="second document")
    table = text(tmp_path, heldout_source="b.txt").prepare(tmp_path / "cache")
    assert decoded(table.train) == {b"first document"}


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
def test_transformers_gets_the_ids_of_the_table(tmp_path, tokenizer):
    words = {f"t{n}": f"{n} Größe, ein\n {n * n} <b>" for n in range(20)}
    write(
        tmp_path,
        **words,
        h2="ein",
        h1="¡neu! röße 7 " if tokenizer == "characters" else "größe\t7",
    )
    options = {"vocabulary": 280} if tokenizer == "bpe" else {}
    table = text(
        tmp_path,
        source="t*.txt",
        heldout_source="h*.txt",
        tokenizer=tokenizer,
        length=40,
        **options,
    ).prepare(tmp_path / "cache")
    (tmp_path / "model").mkdir()
    save_for_transformers(table, tmp_path / "model")
    made = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (made.mask_token_id, made.pad_token_id) == (table.mask_id, table.pad_id)
    assert len(made) == table.total_vocabulary
    text_h = (tmp_path / "h1.txt").read_text()
    ids = made(text_h, padding="max_length", truncation=True)["input_ids"]
    assert ids in np.asarray(table.heldout.tokens).tolist()
    known = [i for i in ids if i != made.pad_token_id]
    assert made.decode(known) == text_h.replace("¡", "").replace("!", "").replace("u", "")


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
        b"one",
        b"two",
        b"three",
        b"four",
    }
    paragraphs = text(tmp_path, documents="paragraph", heldout=0.5, length=4)
    # The first and the last paragraph are the same, so one of them counts.
    assert sum(paragraphs.prepare(tmp_path / "cache").groups.values()) == 2


def test_lines_of_one_file_can_be_a_group(tmp_path):
    write(tmp_path, **{name: f"{name} one\n{name} two\n{name} three\n" for name in "abcdef"})
    table = text(tmp_path, source="*.txt", documents="line", group="file", heldout=0.5).prepare(
        tmp_path / "cache"
    )
    assert table.groups == {"train": 3, "heldout": 3}
    for split in (table.train, table.heldout):
        assert np.unique(split.groups, return_counts=True)[1].tolist() == [3, 3, 3]
        files = [bytes(t[:1].tolist()) for t in split.tokens]
        assert len(set(zip(files, split.groups.tolist(), strict=True))) == 3
    with pytest.raises(ValueError, match=r"no column 'site'; there are file"):
        text(tmp_path, source="*.txt", group="site").prepare(tmp_path / "cache")


def test_no_group_is_both_trained_on_and_held_out_from_a_source_of_its_own(tmp_path):
    rows = {
        "train": [("a1", 1), ("a2", 2), ("a3", 3), ("a4", ""), ("a5", "2")],
        "other": [("b1", 2), ("b2", 2), ("b3", 4), ("b4", "")],
    }
    for name, found in rows.items():
        lines = "".join(f"{text},{site}\n" for text, site in found)
        (tmp_path / f"{name}.csv").write_text("text,site\n" + lines)
    given = {"source": "train.csv", "heldout_source": "other.csv", "length": 2}
    table = text(tmp_path, group="site", **given).prepare(tmp_path / "cache")
    assert decoded(table.train) == {b"a1", b"a3", b"a4"}
    assert table.groups == {"train": 3, "heldout": 3}
    # Without groups, only equal contents are left out.
    assert len(decoded(text(tmp_path, **given).prepare(tmp_path / "cache").train)) == 5


def test_a_document_without_a_group_is_one_of_its_own(tmp_path):
    lines = [json.dumps({"text": f"{n:02d}", "site": n // 2 if n < 8 else None}) for n in range(14)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    data = text(tmp_path, source="rows.jsonl", group="site", heldout=0.5, length=2)
    table = data.prepare(tmp_path / "cache")
    assert table.groups == {"train": 5, "heldout": 5}
    assert "6 documents without site, each a group of its own" in table.description
    assert list(documents(["rows.jsonl"], "file", tmp_path, "site").values())[-4:] == [
        f"rows.jsonl:{n}" for n in (11, 12, 13, 14)
    ]


def test_keys_of_a_source_are_refused_without_one(tmp_path):
    with pytest.raises(ValidationError, match="group is of a source; without one, the held-out"):
        text(tmp_path, domains={"noisy": {"noise": 0.5, "group": "site"}})


def test_a_subset_keeps_as_many_groups_as_it_can(tmp_path):
    write(tmp_path, **{name: name * (800 if name == "a" else 16) for name in "abcdefghij"})
    few = {"source": "*.txt", "length": 8, "heldout": 0.5, "seed": 2}
    whole = text(tmp_path, **few).prepare(tmp_path / "cache").heldout
    assert np.unique(whole.groups, return_counts=True)[1].max() == 100, "a is held out"
    part = text(tmp_path, **few, max_heldout_sequences=5).prepare(tmp_path / "cache").heldout
    assert len(np.unique(part.groups)) == 5


def test_subsets_are_rows_of_the_whole_in_order(corpus):
    whole = text(corpus, heldout=0.3).prepare(corpus / "cache")
    part = text(corpus, heldout=0.3, max_train_sequences=7, max_heldout_sequences=3).prepare(
        corpus / "cache"
    )
    assert (len(part.train), len(part.heldout)) == (7, 3)
    for name in ("train", "heldout"):
        drawn, rows = (
            [(d, *r) for d, r in zip(t.groups, t.tokens.tolist(), strict=True)]
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
    assert len(table.train.tokens) == 50
    assert table.groups["train"] < 50, "a random subset: long files have more of it"
    assert b"import" in bytes(table.heldout.tokens[table.heldout.observed].tolist())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("d00.tx", r"source: no such file: .*d00.tx; did you mean 'd00.txt'\?"),
        ("*.csv", r"source: no such file: .*\*.csv"),
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
        ({"a": "one document"}, {}, "is one document, so nothing can be held out; give more"),
        ({"a": "long enough", "b": "1"}, {"heldout_source": "b.txt"},
         "1 held-out sequence of 8 bytes; scoring needs at least 2"),
        ({"a": "the same text"}, {"heldout_source": "a.txt"}, "none is left to train on"),
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


ROWS = [{"text": f"document {i} of site {i % 4} " * 4, "site": i % 4, "day": i} for i in range(40)]


def write_rows(folder):
    """The same forty documents in every format with columns."""
    pa = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    lines = "".join(json.dumps(r) + "\n" for r in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "rows.csv").write_text(
        "text,site,day\n" + "".join(f"{r['text']},{r['site']},{r['day']}\n" for r in ROWS)
    )
    (folder / "rows.fasta").write_text("".join(f">{i}\n{r['text']}\n" for i, r in enumerate(ROWS)))
    columns = {name: [r[name] for r in ROWS] for name in ROWS[0]}
    parquet.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=7)
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "rows_dataset"))
    fsspec.filesystem("memory").pipe("/corpus/rows.jsonl", lines.encode())


SOURCES = [
    "rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.fasta", "rows.parquet", "rows_dataset",
    "hf:rows_dataset", "memory://corpus/rows.jsonl", "memory://corpus/*.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_gives_the_same_documents(tmp_path, source):
    write_rows(tmp_path)
    table = text(tmp_path, source=source, length=32).prepare(tmp_path / "cache")
    assert table.groups == {"train": 36, "heldout": 4}
    wanted = {r["text"].strip().encode() for r in ROWS}
    assert {c.strip() for c in decoded(table.train) | decoded(table.heldout)} == wanted


def test_a_hub_name_is_loaded_by_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict(train=found, test=found)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"a/b": splits}[name])
    table = text(tmp_path, source="hf:a/b:test").prepare(tmp_path / "cache")
    assert sum(table.groups.values()) == 40
    with pytest.raises(ValueError, match=r"has the splits train, test; name one, e\.g\. hf:a/b:"):
        text(tmp_path, source="hf:a/b").prepare(tmp_path / "cache")


def test_groups_and_times_are_held_out(tmp_path):
    write_rows(tmp_path)
    grouped = text(tmp_path, source="rows.jsonl", group="site", heldout=0.25, length=128)
    table = grouped.prepare(tmp_path / "cache")
    assert (table.groups, table.grouped_by) == ({"train": 3, "heldout": 1}, "site")
    sites, others = (
        [bytes(t[t < 256].tolist()).split()[4] for t in split.tokens]
        for split in (table.heldout, table.train)
    )
    assert (len(sites), len(set(sites))) == (10, 1)
    assert len(set(zip(others, table.train.groups.tolist(), strict=True))) == len(set(others)) == 3
    timed = text(tmp_path, source="rows.jsonl", time="day", heldout=0.25, length=64)
    days = {int(c.split()[1]) for c in decoded(timed.prepare(tmp_path / "cache").heldout)}
    assert days == set(range(30, 40))


def test_domains_are_scored_apart_and_never_trained_on(tmp_path):
    write(tmp_path, a="alpha " * 9, b="beta " * 9, c="gamma " * 9, bible="in the beginning " * 9)
    domains = {"bible": {"source": "bible.txt"}, "noisy": {"noise": 0.5}}
    table = text(tmp_path, source="*.txt", heldout=0.4, domains=domains).prepare(tmp_path / "cache")
    assert table.domains == ("bible", "noisy")
    assert not any(b"beginning" in c for c in decoded(table.train))
    assert decoded(table.domain("bible")) == {b"in the beginning " * 9}
    clean, noisy = (np.asarray(s.tokens) for s in (table.heldout, table.domain("noisy")))
    assert clean.shape == noisy.shape
    assert 0.2 < (clean != noisy).mean() < 0.7
    assert table.domain_bytes == {"bible": 1.0, "noisy": 1.0}


def test_documents_with_values_of_a_column_are_a_domain(tmp_path):
    rows = [{"text": f"text {n} of {'abc'[n % 3]}", "kind": n % 3, "day": n} for n in range(36)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    domains = {
        "twos": {"where": {"kind": 2}},
        "noisy ones": {"where": {"kind": ["1", 7], "day": list(range(18))}, "noise": 0.5},
    }
    data = text(tmp_path, source="rows.jsonl", heldout=0.25, domains=domains)
    table = data.prepare(tmp_path / "cache")
    assert decoded(table.domain("twos")) == {r["text"].encode() for r in rows[2::3]}
    assert len(set(table.domain("noisy ones").groups)) == 6
    assert not decoded(table.domain("noisy ones")) & {r["text"].encode() for r in rows}
    home = decoded(table.train) | decoded(table.heldout)
    assert home == {
        r["text"].encode() for r in rows if r["kind"] == 0 or r["day"] in range(19, 36, 3)
    }
    assert table.groups == {"train": 14, "heldout": 4}
    none = text(tmp_path, source="rows.jsonl", domains={"x": {"where": {"kind": 9}}})
    with pytest.raises(
        ValueError, match=r'domains.x.where: .*rows.jsonl where {"kind": 9} holds no'
    ):
        none.prepare(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"rows.jsonl:1: no column 'kid'; .*did you mean 'kind'"):
        text(tmp_path, source="rows.jsonl", domains={"x": {"where": {"kid": 9}}}).prepare(tmp_path)


def test_bpe_is_trained_on_the_training_documents_and_counts_bytes(tmp_path):
    write_rows(tmp_path)
    data = text(tmp_path, source="rows.jsonl", tokenizer="bpe", vocabulary=300, length=16)
    table = data.prepare(tmp_path / "cache")
    assert 257 <= table.vocabulary_size <= 300
    whole = sum(len(r["text"]) for r in ROWS)
    held = np.unique(table.heldout.groups)
    tokens = int(table.heldout.observed.sum())
    assert len(held) == 4
    assert table.bytes_per_token * tokens == pytest.approx(whole / 10, rel=0.05)
    again = text(tmp_path, source="rows.jsonl", tokenizer=str(table.path), length=16)
    assert (np.asarray(again.prepare(tmp_path / "cache").train.tokens) == table.train.tokens).all()


def test_unknown_subwords_are_not_observed_and_their_bytes_do_not_count(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    write(tmp_path, a="red blue red", b="red green blue red")
    table = text(
        tmp_path, source="a.txt", heldout_source="b.txt", tokenizer="words.json", length=2
    ).prepare(tmp_path / "cache")
    assert table.heldout.observed.tolist() == [[True, False], [True, True]]
    assert table.bytes_per_token == (len("red green blue red") - len("green")) / 3
    assert table.unknown == {"heldout": 1}


def test_a_changed_source_is_noticed(tmp_path):
    # Large enough that its hash is kept between searches, by size and time of change.
    path, lines = tmp_path / "big.txt", "".join(f"line {i}\n" for i in range(150_000))
    write(tmp_path, small="another document")
    path.write_text(lines)
    data = text(tmp_path, length=64)
    first = data.prepare(tmp_path / "cache").hash
    assert data.prepare(tmp_path / "cache").hash == first
    path.write_text(lines.replace("line 7\n", "lime 7\n"))
    assert data.prepare(tmp_path / "cache").hash != first


def test_documents_of_a_domain_are_trained_on_but_for_those_that_are_scored(tmp_path):
    new, old = [f"{n:05b}" for n in range(20)], [f"\u00f6ld {n:04b}" for n in range(10)]
    write(tmp_path, **{f"d{n}": content for n, content in enumerate(new)})
    (tmp_path / "old.lines").write_text("\n".join([*old, *new]))
    domain = {"source": "old.lines", "documents": "line", "heldout": 0.4}
    domains = {"old": domain, "noisy": {"noise": 0.5}}
    data = text(tmp_path, heldout=0.3, tokenizer="characters", domains=domains)
    table = data.prepare(tmp_path / "cache")
    alphabet = np.load(table.path / "alphabet.npy")

    def shown(split):
        rows = zip(split.tokens, split.observed, strict=True)
        return {"".join(map(chr, alphabet[tokens[seen]])) for tokens, seen in rows}

    scored, trained = shown(table.domain("old")), shown(table.mixed("old"))
    home, heldout = shown(table.train), shown(table.heldout)
    assert len(scored) == 12
    assert scored & {*new}
    assert heldout - scored, "the old source has them, too, and they are not trained on"
    assert trained == {*old, *new} - scored - heldout, "the alphabet is that of all training text"
    assert home == {*new} - scored - heldout
    assert f", {len(trained)} of old to mix in" in table.description
    with pytest.raises(FileNotFoundError):
        table.mixed("noisy")
    one = {"old": {**domain, "documents": "file"}}
    with pytest.raises(ValueError, match=r"domains.old.source: .*old.lines is one document, so no"):
        text(tmp_path, domains=one).prepare(tmp_path / "cache")
    with pytest.raises(ValidationError, match="heldout is of a source"):
        text(tmp_path, domains={"noisy": {"noise": 0.5, "heldout": 0.4}})
