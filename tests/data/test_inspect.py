"""What `mptune data inspect` shows, and that it warns of what spoils a score."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mptune.cli import main
from mptune.spec.schema import build

SPEC = """\
name: looked-at
data:
  kind: {kind}
{data}
model: {{family: bert, width: 16, depth: 1}}
policy: {{kind: uniform}}
training: {{budget_tokens: 1e4}}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPTUNE_CACHE", str(tmp_path / "cache"))


def inspected(capsys, folder, kind, *arguments, **data):
    lines = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in data.items())
    (folder / "spec.yaml").write_text(SPEC.format(kind=kind, data=lines))
    code = main(["data", "inspect", str(folder / "spec.yaml"), *arguments])
    return code, capsys.readouterr()


def test_text(tmp_path, capsys):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"this is document number {i} " * 20)
    code, out = inspected(capsys, tmp_path, "text", source="*.txt", length=16, heldout=0.2)
    assert code == 0
    assert "16 + 4" not in out.err
    for words in ("D = 16", "256 symbols", "train", "heldout", "most common:", "▒", "also in"):
        assert words in out.out
    # The repetition makes rows of one document those of another.
    assert "! leakage:" in out.out


def test_json_has_the_figures(tmp_path, capsys):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"this is document number {i} " * 20)
    given = {"source": "*.txt", "length": 16, "heldout": 0.2}
    _, out = inspected(capsys, tmp_path, "text", "--json", **given)
    found = json.loads(out.out)
    assert found["splits"]["train"]["groups"] == 16
    assert found["splits"]["heldout"]["groups"] == 4
    assert found["splits"]["heldout"]["sequences_per_group"] == [33, 33.5, 34]
    assert found["grouped_by"] == "document"
    assert any("fewer than 8 groups (document): 4 in heldout" in w for w in found["warnings"])
    assert found["splits"]["heldout"]["observed_per_sequence"][2] == 16
    assert found["splits"]["heldout"]["also_in_train"] > 0
    assert found["bytes_per_token"] == 1


def test_channels_and_their_gaps(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [
        (s, t, rng.normal() if t % 4 else "", 5, "" if s else rng.normal())
        for s in range(10)
        for t in range(40)
    ]
    lines = "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "s.csv").write_text(f"site,t,half,same,one\n{lines}\n")
    given = {
        "source": "s.csv", "channels": ["half", "same", "one"], "window": 4, "group": "site",
        "heldout_where": {"site": [3, 4]},
    }  # fmt: skip
    _, out = inspected(capsys, tmp_path, "series", "--json", **given)
    found = json.loads(out.out)
    half, same, one = found["channels"]
    assert half["missing"]["train"] == pytest.approx(0.25)
    assert same["symbols"] == 1
    assert one["missing"]["heldout"] == 1
    said = "\n".join(found["warnings"])
    for words in (
        "channel 'same' is constant in training",
        "channel 'one' is never observed in heldout",
        "only 20 held-out sequences",
    ):
        assert words in said
    _, out = inspected(capsys, tmp_path, "series", **given)
    assert "half" in out.out
    assert "25.0%" in out.out


def test_broken_data_get_the_line_of_the_spec_and_of_the_file(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("a,b\n1,2\n1,2,3\n")
    given = {"source": "s.csv", "channels": ["a", "b"], "window": 1}
    code, out = inspected(capsys, tmp_path, "series", **given)
    assert code == 2
    assert out.err.startswith("spec.yaml:2: data: ")
    assert "s.csv:3: ragged row; it has 3 fields, the header has 2" in out.err
    assert out.err.count("\n") == 1


def test_an_unknown_action(capsys):
    assert main(["data", "inspct", "spec.yaml"]) == 2
    assert "did you mean 'inspect'?" in capsys.readouterr().err


def test_duplicates_are_found_by_content(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 8)
    (tmp_path / "b.txt").write_text("0123456789" * 2 + "something else.....")
    data = build("data", {"kind": "text", "source": "a.txt", "heldout_source": "b.txt",
                          "length": 10}).resolved(tmp_path)  # fmt: skip
    found = data.inspect(data.prepare(tmp_path / "cache"))
    assert found["splits"]["heldout"]["also_in_train"] == 2
