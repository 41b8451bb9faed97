"""`mptune score` on checkpoints: one model, two, two that cut text differently, and mistakes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mptune.cli import main
from tests import checkpoints


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "raw": checkpoints.save(root / "raw", seed=0),
        "trained": checkpoints.save(root / "trained", seed=0, steps=60),
        "merged": checkpoints.save(root / "merged", pairs=[("t", "h"), ("c", "a"), ("o", "n")]),
    }


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(checkpoints.sentences(400)) + "\n")
    return str(path)


def run(capsys, tmp_path, *arguments):
    code = main(["score", *arguments, "--output", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_model_is_scored_to_the_target(capsys, tmp_path, models, lines):
    code, out, err = run(
        capsys, tmp_path, models["trained"], "--data", lines, "--documents", "line",
        "--target-se", "0.05", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["target_reached"]
    assert found["se_nats_per_token"] <= 0.05
    low, high = found["interval_95_nats_per_token"]
    assert low < found["nats_per_token"] < high
    # One character is one byte here, and a symbol, so the two units must agree.
    assert found["bits_per_byte"] == pytest.approx(-found["nats_per_token"] / math.log(2), 1e-6)
    assert found["loss_at_15"]["nats_per_token"] > 0
    assert found["order_gap_nats"]["rms"] > 0
    assert "standard error" in err
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == found
    area = np.trapezoid(
        [p["mean_log_prob"] for p in found["curve"]], [p["mask_rate"] for p in found["curve"]]
    )
    assert area == pytest.approx(found["nats_per_token"], rel=0.15)


def test_sequences_of_few_documents_are_scored_for_these_only(capsys, tmp_path, models, lines):
    given = (models["raw"], "--data", lines, "--documents", "line", "--sequences", "40")
    code, out, _ = run(capsys, tmp_path, *given, "--group", "file", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["groups"], found["se_of"]) == (1, "fixed")
    code, out, _ = run(capsys, tmp_path, *given, "--group", "file")
    assert "on this 1 group (file) only" in out
    assert "are enough" not in out
    code, out, _ = run(capsys, tmp_path, *given, "--json")
    assert json.loads(out)["groups"] == 40
    code, _, err = run(capsys, tmp_path, *given, "--group", "author")
    assert code == 2
    assert "no column 'author'; there are file" in err


def test_text_has_the_figures(capsys, tmp_path, models, lines):
    code, out, _ = run(
        capsys, tmp_path, models["raw"], "--data", lines, "--documents", "line",
        "--sequences", "40", "--target-se", "1e-6",
    )  # fmt: skip
    assert code == 0
    assert "accumulated LML" in out
    assert "bits per byte" in out
    assert "1e-06 needs about" in out


def test_the_trained_model_is_better(capsys, tmp_path, models, lines):
    code, out, _ = run(
        capsys, tmp_path, models["raw"], models["trained"], "--data", lines,
        "--documents", "line", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] == models["trained"]
    assert found["difference_nats_per_sequence"] < -found["half_width_nats_per_sequence"]
    assert found["same_tokenizer"]
    assert found["forwards_of_each"] >= 100


def test_tokenizers_that_differ_are_compared_in_bits_per_byte(capsys, tmp_path, models, lines):
    code, out, err = run(
        capsys, tmp_path, models["trained"], models["merged"], "--data", lines,
        "--documents", "line", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert "only bits per byte can be compared" in err
    assert not found["same_tokenizer"]
    assert found["difference_nats_per_token"] is None
    assert found["verdict"] == models["trained"]
    gap = found["bits_per_byte"][0] - found["bits_per_byte"][1]
    assert found["difference_bits_per_byte"] == pytest.approx(gap, abs=1e-9)


def test_an_undecided_race_says_so(capsys, tmp_path, models, lines):
    code, out, _ = run(
        capsys, tmp_path, models["raw"], models["raw"], "--data", lines, "--documents", "line",
        "--max-forwards", "128",
    )  # fmt: skip
    assert code == 0
    assert "Undecided between" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all", "--data", "{lines}"], "nowhere/at/all: no such folder"),
        (["{raw}", "--data", "missing.txt"], "--data: source: "),
        (["{raw}", "--data", "{lines}", "--length", "900"], "--length: 900 is not in 1..62"),
        (["{raw}", "--data", "{lines}", "--target-se", "0"], "0 is not a positive number"),
        (["{raw}", "--data", "{empty}"], "holds no text"),
        (["{raw}", "{raw}", "{raw}", "--data", "{lines}"], "3 models: give one to score or two"),
        (
            ["{raw}", "{raw}", "--data", "{abc}", "--sequences", "50"],
            "fewer than 8 blocks: nothing can be decided; use more groups or more forwards\n",
        ),
        (["{raw}"], "--data"),
        (["{raw}", "--data", "{greek}"], "tokens are unknown to its tokenizer"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, models, lines, arguments, message):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    abc = tmp_path / "abc.txt"
    abc.write_text("abc" * 5000)
    greek = tmp_path / "greek.txt"
    greek.write_text("γνῶθι σεαυτόν. " * 200)
    known = {**models, "greek": str(greek), "abc": str(abc), "lines": lines, "empty": str(empty)}
    code, out, err = run(capsys, tmp_path, *(a.format(**known) for a in arguments))
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_cannot_be_scored_is_named(capsys, tmp_path, models, lines):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(models["raw"], tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights = {name: value * float("nan") for name, value in weights.items()}
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    code, _, err = run(capsys, tmp_path, str(tmp_path / "nan"), "--data", lines)
    assert code == 3
    assert "sums to nan with M=" in err


def test_a_pretrained_model_of_reactions(capsys, tmp_path):
    """ALBERT, trained at 15 %: its 15 % loss flatters it by more than a nat per token."""
    (tmp_path / "reactions").mkdir()
    name = checkpoints.reactions_model(tmp_path / "reactions")
    text = tmp_path / "reactions.txt"
    text.write_text("\n".join(checkpoints.esterifications()) + "\n")
    code, out, _ = run(
        capsys, tmp_path, name, "--data", str(text), "--documents", "line", "--target-se", "0.1",
        "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert -3.0 < found["nats_per_token"] < -1.0
    assert found["bias_of_scoring_at_15_nats_per_token"] > 1.0
