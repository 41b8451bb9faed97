"""`mptune policy show`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mptune.cli import main


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("kind: fixed\nrate: 0.3\nstructure: span\n", encoding="utf-8")
    return path


def test_show_prints_and_draws(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(policy)]) == 0
    out = capsys.readouterr().out
    assert "fixed 30 %, spans to 10" in out
    assert "mean rate over training 30.0 %" in out
    assert policy.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_show_speaks_json(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = policy.parent / "x.png"
    options = ["--length", "20", "--picture", str(picture), "--json"]
    assert main(["policy", "show", str(policy), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["support"], found["mean_rate"]) == ([6, 6], pytest.approx(0.3))
    assert picture.exists()


def test_show_costs_the_model_that_is_given(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = policy.parent / "model.yaml"
    model.write_text("family: esm\nwidth: 32\ndepth: 1\n", encoding="utf-8")
    assert main(["policy", "show", str(policy), "--model", str(model), "--vocabulary", "9"]) == 0
    assert "esm 32×1, vocabulary 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: fixed\nrate: 3\n", "policy.yaml:2: rate: 3 is not a mask rate"),
        ("kind: fixd\n", "policy.yaml:1: 'fixd' is not one of the policies"),
        (
            "kind: fixed\nrate: .1\nstructure: spam\n",
            "policy.yaml:3: structure: 'spam' is not",
        ),
        ("rate: .1\n", "policy.yaml:1: needs 'kind'"),
    ],
)
def test_a_wrong_policy_gets_one_line(
    policy: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write_text(text, encoding="utf-8")
    assert main(["policy", "show", str(policy)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1
    assert not policy.with_suffix(".png").exists()


def test_wrong_options(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(policy), "--length", "0"]) == 2
    assert main(["policy", "show", str(policy.parent / "none.yaml")]) == 2
    assert main(["policy", "draw", str(policy)]) == 2
    assert "Traceback" not in capsys.readouterr().err
