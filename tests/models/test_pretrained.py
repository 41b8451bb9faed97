"""Checkpoints in the Hugging Face format: their tokens, and log p at masked positions only."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mptune.errors import InputError
from mptune.models.pretrained import PretrainedMaskedLM
from tests import checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "electra", "esm"])
def test_log_prob_is_that_of_the_whole_model(tmp_path, family):
    """Against a plain forward with logits everywhere, softmax over what can occur."""
    model = PretrainedMaskedLM.open(checkpoints.save(tmp_path, family=family))
    table = model.encode([model.pieces(t) for t in ("the cat sat.", "a", "on the mat, and far")])
    rng = np.random.default_rng(0)
    mask = table.observed & (rng.random(table.tokens.shape) < 0.5)
    mask[:, 1] = True
    found = model.log_prob(table.tokens, mask)
    with torch.no_grad():
        logits = model.model(
            input_ids=torch.from_numpy(np.where(mask, 4, table.tokens)),
            attention_mask=torch.from_numpy(table.tokens != 0).long(),
        ).logits
    logits[..., [0, 2, 3, 4]] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, torch.from_numpy(table.tokens)[..., None])[..., 0]
    np.testing.assert_allclose(found[mask], expected.numpy()[mask], rtol=1e-4, atol=1e-5)
    assert (found[~mask] == 0).all()


def test_the_head_sees_masked_positions_only(folder):
    model = PretrainedMaskedLM.open(folder)
    table = model.encode([model.pieces("the cat sat on the mat")])
    mask = table.observed & (np.arange(table.tokens.shape[1]) % 5 == 1)
    seen = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape))
    model.log_prob(table.tokens, mask)
    assert seen == [(1, mask.sum(), 32)]


def test_specials_and_padding_are_not_observed(folder):
    model = PretrainedMaskedLM.open(folder)
    table = model.encode([model.pieces("cat"), model.pieces("a!")])
    assert table.tokens[0].tolist()[:1] == [2]
    assert table.observed.tolist() == [
        [False, True, True, True, False],
        [False, True, True, False, False],
    ]
    assert table.unknown == 1
    assert model.room == 62


def test_probabilities_sum_to_one_over_what_can_occur(folder):
    model = PretrainedMaskedLM.open(folder)
    tokens = np.full((model.vocabulary_size, 3), 2)
    tokens[:, 1], tokens[:, 2] = np.arange(model.vocabulary_size), 3
    mask = np.zeros(tokens.shape, bool)
    mask[:, 1] = True
    probability = np.exp(model.log_prob(tokens, mask)[:, 1])
    assert probability.sum() == pytest.approx(1.0, abs=1e-5)
    assert (probability[[0, 2, 3, 4]] == 0).all()


def test_spans_say_where_every_token_begins(tmp_path):
    model = PretrainedMaskedLM.open(checkpoints.save(tmp_path, pairs=[("t", "h"), ("c", "a")]))
    ids, starts = model.spans("the cat")
    assert starts == [0, 2, 3, 4, 6]
    assert model.pieces("the cat") == ids
    assert len(ids) == 5


def test_tokenizers_that_differ_are_told_apart(folder, tmp_path):
    model = PretrainedMaskedLM.open(folder)
    assert model.same_tokens(PretrainedMaskedLM.open(folder))
    other = PretrainedMaskedLM.open(checkpoints.save(tmp_path, pairs=[("t", "h")]))
    assert not model.same_tokens(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", "no such folder"),
        (lambda p: p, "not a model folder \\(no config.json in it\\)"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as caught:
        PretrainedMaskedLM.open(str(make(tmp_path)))
    assert "\n" not in str(caught.value)


def test_code_in_a_model_folder_is_never_run(tmp_path, monkeypatch):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.MyConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass MyConfig: ...\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="contains custom code"):
        PretrainedMaskedLM.open(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_broken_weights_are_one_line(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        PretrainedMaskedLM.open(str(tmp_path / "broken"))
    assert str(caught.value).startswith(str(tmp_path / "broken"))
    assert "\n" not in str(caught.value)


def test_a_name_is_refused_at_once_if_the_hub_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Mock(endpoint="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"^nosuchmodel: no such folder, and the Hugging Face hub"):
        PretrainedMaskedLM.open("nosuchmodel")
