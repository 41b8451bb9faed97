"""Models that go on from a checkpoint: log p, gradients and files are those of the checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tests.checkpoints as checkpoints
from mptune.errors import InputError
from mptune.models._conformance import conformance
from mptune.models.base import IMPOSSIBLE
from mptune.models.pretrained import PretrainedMaskedLM
from mptune.search.application import Session
from mptune.spec.schema import Score, build
from mptune.spec.source import SpecFile
from mptune.training.execution import score_as_they_are
from mptune.training.scoring import HeldOut

FAMILIES = ("bert", "roberta", "albert", "esm", "modernbert", "distilbert", "electra")
FAMILIES += checkpoints.DECODERS
LENGTH = 24


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp(request.param), family=request.param)


def rows(opened):
    """Texts as the data have them: ids without specials [B, D], the last ones [PAD] = V + 1."""
    symbols = len(opened.tokenizer)
    pieces = [opened.pieces(line)[:LENGTH] for line in checkpoints.sentences(4)]
    pieces = [piece[: LENGTH - 3 * n] for n, piece in enumerate(pieces)]
    tokens_BD = np.full((len(pieces), LENGTH), symbols + 1)
    for n, piece in enumerate(pieces):
        tokens_BD[n, : len(piece)] = piece
    return symbols, pieces, tokens_BD


def test_log_p_is_that_of_mptune_score(checkpoint):
    opened = PretrainedMaskedLM.open(checkpoint)
    symbols, pieces, tokens_BD = rows(opened)
    mask_BD = (np.random.default_rng(0).random(tokens_BD.shape) < 0.5) & (tokens_BD < symbols)
    table = opened.encode(pieces)
    framed_mask = np.zeros(table.tokens.shape, bool)
    framed_mask[table.observed] = mask_BD[tokens_BD < symbols]
    expected_K = opened.log_prob(table.tokens, framed_mask)[framed_mask]

    module = build("model", {"from": checkpoint}).build(symbols + 2, symbols, LENGTH).eval()
    hidden_BD = torch.from_numpy(np.where(mask_BD, symbols, tokens_BD))
    attend_BD, mask = torch.from_numpy(tokens_BD <= symbols), torch.from_numpy(mask_BD)
    for given in (mask, mask.flatten().nonzero()[:, 0]):
        with torch.no_grad():
            logits_KV = module(hidden_BD, given, attend_BD)
        assert logits_KV.shape == (mask_BD.sum(), symbols)
        log_p_K = logits_KV.log_softmax(1)[torch.arange(len(logits_KV)), tokens_BD[mask_BD]]
        np.testing.assert_allclose(log_p_K, expected_K, atol=2e-5)
    assert logits_KV[:, opened.banned].max() < IMPOSSIBLE / 2


def test_it_does_what_the_contract_says_and_every_parameter_is_trained(checkpoint):
    model = build("model", {"from": checkpoint})
    symbols = len(PretrainedMaskedLM.open(checkpoint).tokenizer)
    checks = conformance(lambda: model.build(symbols + 2, symbols, LENGTH), symbols, LENGTH)
    # With weights that nobody has trained, logits hardly depend on the context.
    assert {problem for name, problem in checks if name != "context"} == {None}
    module = model.build(symbols + 2, symbols, LENGTH)
    assert module.training
    tokens_BD = torch.full((2, LENGTH), symbols)
    logits_KV = module(tokens_BD, torch.arange(2 * LENGTH))
    logits_KV.log_softmax(1)[:, 6].sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
    counted = model.parameters(symbols + 2, LENGTH)
    assert counted == sum(p.numel() for p in module.parameters())
    assert model.flops(symbols + 2, LENGTH, 4, 40) > 3 * 2 * 4 * LENGTH * 2 * 8 * 32**2


def test_gradients_are_those_of_plain_transformers(tmp_path):
    folder = checkpoints.save(tmp_path)
    symbols, _, tokens_BD = rows(PretrainedMaskedLM.open(folder))
    tokens_BD = tokens_BD[:1, :12]  # no padding
    mask_BD = np.arange(12)[None] % 3 == 0
    module = build("model", {"from": folder}).build(symbols + 2, symbols, 12).eval()
    logits_KV = module(
        torch.from_numpy(np.where(mask_BD, symbols, tokens_BD)), torch.from_numpy(mask_BD)
    )
    target_K = torch.from_numpy(tokens_BD[mask_BD])
    torch.nn.functional.cross_entropy(logits_KV, target_K).backward()

    plain = PretrainedMaskedLM.open(folder)
    inputs = torch.from_numpy(np.r_[2, np.where(mask_BD[0], 4, tokens_BD[0]), 3])[None]
    logits_LV = plain.model(input_ids=inputs).logits[0, 1:-1]
    logits_LV[:, plain.banned] = -torch.inf
    torch.nn.functional.cross_entropy(logits_LV[mask_BD[0]], target_K).backward()
    theirs = dict(plain.model.named_parameters())
    for name, own in module.model.named_parameters():
        torch.testing.assert_close(own.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)


def test_wrong_data_are_one_line(tmp_path):
    folder = checkpoints.save(tmp_path)
    model = build("model", {"from": folder})
    symbols = len(checkpoints.tokenizer())
    with pytest.raises(InputError, match=f"has {symbols} symbols, the data have 256; set data"):
        model.build(258, 256, 24)
    with pytest.raises(InputError, match=r"has room for data\.length 62, not 63"):
        model.build(symbols + 2, symbols, 63)
    module, tokens_BD = model.build(symbols + 2, symbols, 24), torch.zeros(1, 24, dtype=torch.long)
    with pytest.raises(InputError, match=r"training\.pack"):
        module(tokens_BD, torch.arange(3), None, tokens_BD, tokens_BD)


def test_a_folder_is_beside_the_spec_and_its_tokenizer_is_the_default(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    checkpoints.save(tmp_path / "base")
    (tmp_path / "corpus.txt").write_text("\n\n".join(checkpoints.sentences(40)))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: go-on\n"
        "data: {kind: text, source: corpus.txt, documents: paragraph, length: 24}\n"
        "model: {choice: [{from: base}, {family: bert, width: 32, depth: 2}]}\n"
        "policy: {kind: uniform}\n"
        "training: {budget_tokens: 1e5}\n"
        "search: {arms: {goes on: {model: {from: base}}}}\n"
    )
    monkeypatch.chdir("/")
    file = SpecFile.read(spec)
    checked = file.validate()
    base = str(tmp_path / "base")
    assert checked.model["from"] == base
    assert checked.data["tokenizer"] == base
    assert checked.search.arms["goes on"]["model"]["from"] == base
    assert list(file.dimensions["model"].labels) == ["base", "bert"]
    for change, problem in {
        "data.tokenizer=bytes": "spec.yaml:3: model.from: a checkpoint goes on with text in its",
        "model={from: nosuch/one/here}": "model.from: nosuch/one/here: no such folder",
        "model={from: .}": "model.from: .* is no checkpoint: it has no config.json",
        "training.optimizer.width_rule=mup": "width_rule: the width of a model.class or a model.fr",
    }.items():
        with pytest.raises(InputError, match=problem):
            SpecFile.read(spec, [change]).validate()


def test_a_checkpoint_that_knows_nothing_has_the_score_of_guessing(tmp_path):
    folder = checkpoints.save(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    nothing = {name: torch.zeros_like(value) for name, value in weights.items()}
    save_file(nothing, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    heldout = HeldOut.select(table_of(tmp_path, folder), Score(sequences=64, forwards=2))
    guess = -np.log(len(checkpoints.tokenizer()) - 4)  # [PAD], [CLS], [SEP] and [MASK] are no text
    assert score_as_they_are([{"from": folder}], heldout) == pytest.approx(guess, abs=1e-5)


def table_of(tmp_path, folder, more=""):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join([*checkpoints.sentences(400), more]))
    data = {"kind": "text", "source": str(corpus), "documents": "paragraph", "heldout": 0.4}
    return build("data", {**data, "length": 24, "tokenizer": folder}).prepare(tmp_path / "tables")


def test_special_symbols_of_a_text_are_text(tmp_path):
    folder = checkpoints.save(tmp_path)
    table = table_of(tmp_path, folder, more="[SEP] " * 40)
    banned = PretrainedMaskedLM.open(folder).banned
    for split in (table.train, table.heldout):
        assert not np.isin(split.tokens[split.observed], banned).any()


def test_a_checkpoint_of_another_tokenizer_or_without_a_head_is_refused(tmp_path):
    one, other, headless = (tmp_path / name for name in ("one", "other", "headless"))
    one.mkdir(), other.mkdir()
    checkpoints.save(one)
    checkpoints.save(other)
    names = json.loads((other / "tokenizer.json").read_text())
    vocabulary = names["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(names))
    heldout = HeldOut.select(table_of(tmp_path, str(one)), Score(sequences=64, forwards=2))
    with pytest.raises(InputError, match=r"of another tokenizer than the checkpoint's"):
        score_as_they_are([{"from": str(other)}], heldout)

    PretrainedMaskedLM.open(str(one)).model.base_model.save_pretrained(headless)
    checkpoints.tokenizer().save_pretrained(headless)
    with pytest.raises(InputError, match=r"no masked language model: it has no weights of cls"):
        build("model", {"from": str(headless)}).build(36, 34, 24)


def test_activations_are_computed_again_to_the_same_gradients(checkpoint):
    symbols, _, tokens_BD = rows(PretrainedMaskedLM.open(checkpoint))
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        module = build("model", {"from": checkpoint}).build(symbols + 2, symbols, LENGTH)
        if again and type(module.model).__name__.startswith("Albert"):
            with pytest.raises(InputError, match=r"Albert.* does not support"):
                module.checkpoint_activations()
            return
        if again:
            module.checkpoint_activations()
        module.train()
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        inputs = torch.from_numpy(tokens_BD)
        attend = inputs <= symbols
        module(inputs, torch.arange(0, 12), attend).log_softmax(1)[:, 6].sum().backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_one_that_mptune_has_kept_goes_on(tmp_path):
    made = build("model", {"family": "roberta", "width": 32, "depth": 1}).build(36, 34, 24)
    made.save_pretrained(str(tmp_path))
    words = checkpoints.tokenizer()
    words.add_tokens([f"extra{n}" for n in range(36 - len(words))])
    words.save_pretrained(tmp_path)
    module = build("model", {"from": str(tmp_path)}).build(38, 36, 20).eval()
    assert module(torch.full((1, 20), 36), torch.arange(20)).isfinite().all()


def test_checkpoints_of_named_arms_are_scored_as_they_are(tmp_path):
    (tmp_path / "base").mkdir()
    checkpoints.save(tmp_path / "base")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: arms\n"
        "data: {kind: text, source: python-stdlib, length: 24}\n"
        "model: {family: bert}\n"
        "policy: {kind: uniform}\n"
        "training: {budget_tokens: 1e5}\n"
        "compare: {arms: {a: {policy: {kind: uniform}}, b: {model: {from: base}}}}\n"
    )
    file = SpecFile.read(spec)
    session = Session(file, file.validate(), tmp_path / "run", None, True)
    assert session._checkpoints() == ({"from": str(tmp_path / "base")},)


@pytest.mark.parametrize("family", checkpoints.DECODERS)
def test_a_decoder_is_a_masked_model_that_sees_both_sides(family, tmp_path):
    from transformers import AutoModelForCausalLM

    opened = PretrainedMaskedLM.open(checkpoints.save(tmp_path, family=family, steps=20))
    tokens_BD = opened.encode(
        [opened.pieces(line)[:20] for line in checkpoints.sentences(3)]
    ).tokens
    mask_BD = (np.arange(tokens_BD.shape[1]) % 3 == 1) & (tokens_BD != opened.pad_id)
    found_K = opened.log_prob(tokens_BD, mask_BD)[mask_BD]

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs_BD = torch.from_numpy(np.where(mask_BD, opened.mask_id, tokens_BD))
    hidden_BD = inputs_BD == opened.pad_id  # added to the scores, as eager attention has it
    far_B1DD = (-1e9 * hidden_BD)[:, None, None].expand(-1, 1, tokens_BD.shape[1], -1)
    with torch.inference_mode():
        logits_BDV = plain(input_ids=inputs_BD, attention_mask=far_B1DD).logits
        causal_BDV = plain(input_ids=inputs_BD).logits
    target_K = tokens_BD[mask_BD]
    both_K, left_K = (
        logits.index_fill(-1, torch.tensor(opened.banned), -torch.inf)[
            torch.from_numpy(mask_BD)
        ].log_softmax(1)[torch.arange(len(target_K)), target_K]
        for logits in (logits_BDV, causal_BDV)
    )
    np.testing.assert_allclose(found_K, both_K, atol=2e-5)
    assert np.abs(found_K - left_K.numpy()).max() > 1e-3


def test_what_cannot_see_both_sides_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    cut, sizes = checkpoints.tokenizer(), {"vocab_size": len(checkpoints.tokenizer())}
    cut.save_pretrained(tmp_path)
    MambaForCausalLM(MambaConfig(**sizes, hidden_size=8, num_hidden_layers=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="MambaForCausalLM"):
        PretrainedMaskedLM.open(str(tmp_path))
    GPT2LMHeadModel(GPT2Config(**sizes, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    assert PretrainedMaskedLM.open(str(tmp_path)).mask_id == cut.mask_token_id
    cut.mask_token = None
    cut.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no mask token, so it is not a masked model"):
        PretrainedMaskedLM.open(str(tmp_path))
