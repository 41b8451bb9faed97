"""Broken input: one line that names the file and the row, or skipped and counted on request."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from mptune.spec.schema import build

GOOD = [{"text": f"document number {i} " * 3, "site": i % 3, "day": i} for i in range(12)]


def jsonl(rows) -> bytes:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    return b"\n".join(lines) + b"\n"


def parquet(path, table=None):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    pq.write_table(pa.table(table or {"text": [r["text"] for r in GOOD]}), path)


def prepared(folder, section):
    return build("data", section).resolved(folder).prepare(folder / "cache")


def npy(shape):
    """A file that claims to hold whole numbers of this shape."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


ARRAY = {"kind": "array", "length": 3}
TEXT = {"kind": "text", "length": 8}
TABLE = {"kind": "tabular", "columns": ["a", "b"], "source": "t.csv"}
SERIES = {"kind": "series", "channels": ["a", "b"], "window": 2, "source": "t.csv"}
LINES = b"".join(b"line number %d\n" % i for i in range(30))
ROWS = "\n".join(f"{i},{i * 0.5}" for i in range(30))

CASES = {
    "bad UTF-8": ({"a.txt": b"fine\nbad \xff here\n" + LINES},
        {**TEXT, "source": "a.txt", "documents": "line", "tokenizer": "characters"},
        "a.txt:2: byte 4 is not UTF-8; use tokenizer: bytes"),
    "not JSON": ({"a.jsonl": jsonl([*GOOD[:2], b"{broken", *GOOD[2:]])},
        {**TEXT, "source": "a.jsonl"}, "a.jsonl:3: not JSON: "),
    "no such column": ({"a.jsonl": jsonl(GOOD)}, {**TEXT, "source": "a.jsonl", "column": "txt"},
        "a.jsonl:1: no column 'txt'; there are text, site, day; did you mean 'text'?"),
    "text is a number": ({"a.jsonl": jsonl([*GOOD, {"text": 3}])}, {**TEXT, "source": "a.jsonl"},
        "a.jsonl:13: no text; column 'text' is int"),
    "FASTA without a name": ({"a.fa": b"ACGT\n>x\nAC\n"}, {**TEXT, "source": "a.fa"},
        "a.fa:1: FASTA begins with a line '>NAME'"),
    "empty sequence": ({"a.fa": b">x\n>y\nACGTACGT\n"}, {**TEXT, "source": "a.fa"},
        "a.fa:1: empty sequence; 'x' has no residues"),
    "empty shard": ({"a.csv": b"", "b.csv": b"text\nhello there\n"}, {**TEXT, "source": "*.csv"},
        "a.csv: is empty; a CSV file begins with column names"),
    "ragged CSV": ({"t.csv": f"a,b\n{ROWS}\n1,2,3\n".encode()}, TABLE,
        "t.csv:32: ragged row; it has 3 fields, the header has 2"),
    "truncated Parquet": ({"a.parquet": b"PAR1 and then nothing"}, {**TEXT, "source": "a.parquet"},
        "a.parquet: not a Parquet file, or cut short: "),
    "a word among numbers": ({"t.csv": f"a,b\n{ROWS}\nx,7\n".encode()}, SERIES,
        "t.csv:32: column 'a'; 'x' is not a number, and missing values are empty, NA or NaN"),
    "infinite value": ({"t.csv": f"a,b\n{ROWS}\n1,inf\n".encode()}, SERIES,
        "t.csv:32: column 'b'; the value is infinite"),
    "NaN column": ({"t.csv": ("a,b\n" + "\n".join(f"{i}," for i in range(30))).encode()}, TABLE,
        "column 'b' has no value in the training rows; leave it out"),
    "no column of that name": ({"t.csv": f"a,c\n{ROWS}\n".encode()}, TABLE,
        "t.csv: no column 'b'; there are a, c"),
    "not a date": ({"t.csv": b"a,b,at\n1,2,2020-01-01\n2,3,soon\n"},
        {**SERIES, "time": "at", "split": "time"},
        "t.csv:3: column 'at'; 'soon' is not a time, give numbers or ISO"),
    "a time twice": ({"t.csv": b"a,b,at\n1,2,0\n2,3,60\n5,5,60\n2,3,120\n"},
        {**SERIES, "time": "at", "split": "time"}, "t.csv:4: second row of one time step"),
    "nothing matches": ({"t.csv": f"a,b\n{ROWS}\n".encode()},
        {**TABLE, "domains": {"x": {"where": {"a": 99}}}},
        'domains.x.where: no row of'),
    "wrong dtype": ({"t.npy": None}, {**SERIES, "source": "t.npy"},
        "t.npy: values is <U1 of shape"),
    "not NumPy": ({"t.npy": b"hello"}, {**SERIES, "source": "t.npy"},
        "t.npy: not a NumPy file of numbers; "),
    "not a zip file": ({"t.npz": b"PK\x03\x04" + b"hello" * 99}, {**SERIES, "source": "t.npz"},
        "t.npz: not a NumPy file of numbers; "),
    "a header of 24 TB": ({"t.npy": npy("(1000000000000, 3)")}, {**SERIES, "source": "t.npy"},
        "t.npy: not a NumPy file of numbers; "),
    "an array of 24 TB": ({"t.npy": npy("(1000000000000, 3)")}, {**ARRAY, "source": "t.npy"},
        "t.npy is not a .npy array: "),
    "an empty array": ({"t.npy": b""}, {**ARRAY, "source": "t.npy"}, "t.npy is not a .npy array: "),
    "code in a header": ({"t.npy": npy("__import__('os').system('ls')")},
        {**ARRAY, "source": "t.npy"}, "t.npy is not a .npy array: "),
    "deep JSON": ({"a.jsonl": b'{"text": ' + b"[" * 100_000 + b"\n"}, {**TEXT, "source": "a.jsonl"},
        "a.jsonl:1: not JSON: "),
    "cut-off gzip": ({"a.txt.gz": gzip.compress(b"hello " * 999)[:-20]},
        {**TEXT, "source": "a.txt.gz"}, "a.txt.gz: cannot be read: "),
    "unknown package": ({}, {**TEXT, "source": "package:nosuchpackage/a.txt"},
        "source: no package 'nosuchpackage' is installed"),
    "unknown protocol": ({}, {**TEXT, "source": "nope://a/b.txt"},
        "source: nope://a/b.txt cannot be opened: "),
    "misspelt tokenizer": ({"a.txt": b"hello " * 99}, {**TEXT, "source": "a.txt",
        "tokenizer": "charcters"}, "did you mean 'characters'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_the_place(tmp_path, name):
    files, section, message = CASES[name]
    for file, content in files.items():
        if content is None:
            np.save(tmp_path / file, np.array(["a", "b"]))
        else:
            (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"\w") as caught:
        prepared(tmp_path, section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad UTF-8", "byte 4 is not UTF-8"),
        ("not JSON", "not JSON"),
        ("text is a number", "no text"),
        ("ragged CSV", "ragged row"),
        ("a word among numbers", "column 'a'"),
        ("infinite value", "column 'b'"),
    ],
)
def test_broken_records_are_skipped_and_counted_on_request(tmp_path, name, reason):
    files, section, _ = CASES[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    table = prepared(tmp_path, {**section, "errors": "skip"})
    assert dict(table.skipped) == {reason: 1}
    assert "1 broken" in table.description


def test_a_truncated_parquet_file(tmp_path):
    parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file, or cut short"):
        prepared(tmp_path, {**TEXT, "source": "a.parquet"})
