"""Checkpoints of which a part trains: frozen layers and low-rank adapters."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tests.checkpoints as checkpoints
from mptune.errors import InputError
from mptune.models._conformance import conformance
from mptune.models._masked import check_opens
from mptune.models._memory import Sizes, demand
from mptune.paths import TrialDirectory
from mptune.spec.schema import Score, Training, build
from mptune.spec.source import SpecFile
from mptune.training.execution import prepare
from mptune.trial import Finished, PrepareRequest, Stopped
from tests.models.test_continued import FAMILIES, LENGTH, table_of
from tests.training import trials

SYMBOLS = len(checkpoints.tokenizer())


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp(request.param), family=request.param)


def made(folder, **keys):
    torch.manual_seed(0)
    return build("model", {"from": folder, **keys}).build(SYMBOLS + 2, SYMBOLS, LENGTH)


def trained(module):
    """Names of the parameters that train."""
    return {name for name, p in module.model.named_parameters() if p.requires_grad}


def logits(module):
    tokens_BD = torch.arange(2 * LENGTH).view(2, LENGTH) % SYMBOLS
    with torch.no_grad():
        return module.eval()(tokens_BD, torch.arange(0, 2 * LENGTH, 3))


def test_adapters_alone_train_and_are_merged_into_the_kept_weights(checkpoint, tmp_path):
    module, plain = made(checkpoint, lora={"rank": 2}), made(checkpoint)
    assert torch.equal(logits(module), logits(plain))
    assert {name.split(".")[-3] for name in trained(module)} == {"lora_A", "lora_B"}
    model = build("model", {"from": checkpoint, "lora": {"rank": 2}})
    counted, length = sum(p.numel() for p in module.parameters() if p.requires_grad), LENGTH
    assert model.trained(SYMBOLS + 2, length) == counted < 0.3 * model.parameters(SYMBOLS + 2, 24)
    whole = build("model", {"from": checkpoint})
    assert whole.trained(SYMBOLS + 2, 24) == whole.parameters(SYMBOLS + 2, 24)
    # No gradients of frozen matrices: the backward pass costs little more than the forward.
    ratio = model.flops(SYMBOLS + 2, 24, 8, 40) / whole.flops(SYMBOLS + 2, 24, 8, 40)
    assert 0.6 < ratio < 0.95
    shares = [each.forward_share(SYMBOLS + 2, 24) for each in (whole, model)]
    assert shares[0] == pytest.approx(1 / 3, abs=0.03)
    assert 0.42 < shares[1] < 0.55
    checks = conformance(lambda: made(checkpoint, lora={"rank": 2}), SYMBOLS, LENGTH)
    # The second matrix is zero at first, so the first one's gradient is, too.
    assert {p for name, p in checks if name not in ("context", "gradient")} == {None}

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(logits(module), logits(plain), atol=1e-2)
    before = logits(module)
    module.save_pretrained(str(tmp_path / "kept"))
    assert torch.equal(logits(module), before)
    torch.save(module.state_dict(), tmp_path / "module.pt")
    (tmp_path / "data").mkdir()
    table = table_of(tmp_path / "data", checkpoint)
    assert check_opens(tmp_path / "kept", tmp_path / "module.pt", table, model) < 1e-5
    merged = made(str(tmp_path / "kept"))
    assert not [name for name in merged.state_dict() if "lora" in name]
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert", "electra", "esm"])
def test_the_first_layers_and_the_embeddings_are_frozen(family, tmp_path):
    folder = checkpoints.save(tmp_path, family=family)
    everything = trained(made(folder))
    embeddings = everything - trained(made(folder, freeze="embeddings"))
    first = everything - trained(made(folder, freeze=1))
    both = everything - trained(made(folder, freeze=2))
    assert embeddings
    assert all("embeddings" in name for name in embeddings)
    assert embeddings < first < both < everything
    assert {part for name in first - embeddings for part in name.split(".") if part.isdigit()} == {
        "0"
    }
    assert {"0", "1"} == {
        part for name in both - embeddings for part in name.split(".") if part.isdigit()
    }
    with pytest.raises(InputError, match=r"model\.freeze: 3: .* has 2 layers"):
        made(folder, freeze=3)
    adapted = trained(made(folder, freeze=1, lora={"rank": 2}))
    assert adapted
    assert not [name for name in adapted if ".0." in name]


def test_a_model_that_shares_one_layer_is_not_frozen_in_part(tmp_path):
    folder = checkpoints.save(tmp_path, family="albert")
    with pytest.raises(InputError, match="no list of 2 layers of its own; give embeddings"):
        made(folder, freeze=1)
    assert trained(made(folder, freeze="embeddings")) < trained(made(folder))
    with pytest.raises(
        InputError, match=r"model\.lora\.targets: 'nosuch' ends .* there are dense, embed"
    ):
        made(folder, lora={"targets": ["nosuch"]})
    with pytest.raises(InputError, match=r"'decoder' ends the name of no linear layer that trains"):
        made(folder, lora={"targets": ["decoder"]})
    adapted = trained(made(folder, lora={"rank": 2, "targets": ["query", "attention.value"]}))
    assert {name.split(".")[-4] for name in adapted} == {"query", "value"}


def test_states_are_counted_of_what_trains(tmp_path):
    folder = checkpoints.save(tmp_path)
    whole, adapted = (build("model", {"from": folder, **k}) for k in ({}, {"lora": {"rank": 2}}))
    size = Sizes(family=whole, vocabulary=SYMBOLS + 2, length=LENGTH)
    P, T = (getattr(adapted, n)(SYMBOLS + 2, LENGTH) for n in ("parameters", "trained"))
    for fields, frozen, each in (
        ({}, 4, 20),
        ({"zero_stage": 2}, 4, 24 - 20 / 2),
        ({"zero_stage": 3}, 4 / 2, 20 / 2),
    ):
        given = Training.model_validate({"budget_tokens": 1, "batch_size": 64, **fields})
        found = demand(replace(size, family=adapted), given, 2).states
        assert found == pytest.approx(frozen * (P - T) + each * T), fields
        assert found < demand(size, given, 2).states


def test_they_are_dimensions_and_labels_say_them(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    checkpoints.save(tmp_path / "base")
    (tmp_path / "corpus.txt").write_text("\n\n".join(checkpoints.sentences(40)))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: part\n"
        "data: {kind: text, source: corpus.txt, documents: paragraph, length: 24}\n"
        "model:\n"
        "  from: base\n"
        "  freeze: {int: [0, 2]}\n"
        "  lora: {choice: [null, {rank: {choice: [2, 4]}}]}\n"
        "policy: {kind: uniform}\n"
        "training: {budget_tokens: 1e5}\n"
    )
    file = SpecFile.read(spec)
    file.validate()
    assert set(file.dimensions) >= {"model.freeze", "model.lora"}
    words = {build("model", probe.tree["model"]).words() for probe in file.probes()}
    assert words >= {"base, continued", "base, continued · 2 layers frozen",
                     "base, continued · lora 2", "base, continued · lora 4"}  # fmt: skip
    for change, problem in {
        "model.freeze=-1": "model.freeze: -1 is not a number of layers, and not embeddings",
        "model.freeze=head": "model.freeze: 'head' is not a number of layers, and not embeddings",
        "model.lora={rang: 2}": "model.lora.rang: .*did you mean 'rank'",
        "model.lora={targets: []}": "model.lora.targets",
    }.items():
        with pytest.raises(InputError, match=problem) as error:
            SpecFile.read(spec, [change]).validate()
        assert len(error.value.problems) == 1
    monkeypatch.setattr("mptune.models.continued.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package peft: pip install 'mptune\[lora\]'"):
        SpecFile.read(spec).validate()


# --- real trainings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def goes_on(tmp_path_factory):
    """`goes_on(directory, workers, model, **training)` is a trial from a checkpoint, on text."""
    folder = tmp_path_factory.mktemp("goes-on")
    base = checkpoints.save(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # ranks draw apart
    (folder / "config.json").write_text(json.dumps(config))
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(checkpoints.sentences(400)))
    data = {"kind": "text", "source": str(corpus), "documents": "paragraph", "heldout": 0.2}
    data |= {"length": trials.LENGTH, "tokenizer": base}
    prepared = prepare(
        PrepareRequest(
            data=data,
            score=Score(sequences=40, forwards=2, rates=(0.25,), rung_sequences=16, batch_size=16),
            cache=str(folder / "cache"),
            plan=str(folder / "plan.npz"),
        )
    )

    def make(directory, workers=1, *, model, **training):
        training = {"keep_weights": True, "schedule": {"kind": "constant"}, **training}
        spec = trials.trial(prepared, data, directory, workers, training=training)
        section = build("model", {"from": base, **model}).model_dump(mode="json")
        policy = {"kind": "uniform"}
        return spec.model_copy(update={"model": section, "policy": policy})

    make.base = base
    return make


def state(spec):
    return torch.load(TrialDirectory.of(spec.directory).module)


PARTS = {"lora": {"lora": {"rank": 2}}, "frozen": {"freeze": 1}}


@pytest.mark.parametrize("part", PARTS)
def test_it_learns_what_trains_and_resumes_bit_for_bit(goes_on, alone, tmp_path, part):
    whole, halves = (goes_on(tmp_path / name, model=PARTS[part]) for name in ("whole", "halves"))
    events = alone(whole)
    assert isinstance(events[-1], Finished), events[-1]
    assert events[-1].result.unkept is None
    losses = [loss for _, loss in events[-1].result.loss_curve]
    assert losses[-1] < losses[0] - 0.05
    assert alone(halves, trials.Script(stop_at=10))[-1] == Stopped(
        number=7, reason="interrupted", step=10
    )
    resumed = alone(halves)
    assert resumed[0].resumed_at == 10
    one, other = state(whole), state(halves)
    assert all(torch.equal(one[name], other[name]) for name in one)
    if part == "lora":
        base = load_file(f"{goes_on.base}/model.safetensors")
        kept = load_file(TrialDirectory.of(halves.directory).weights / "model.safetensors")
        assert base.keys() == kept.keys()
        changed = {name for name in base if not torch.equal(base[name], kept[name])}
        assert "bert.encoder.layer.0.attention.self.query.weight" in changed
        assert not [name for name in changed if "embeddings" in name or name.endswith("bias")]


def test_adapters_of_half_precision_weights_are_merged_in_single_precision(
    goes_on, alone, tmp_path
):
    given = {"zero_stage": 2, "precision": "bf16", "deepspeed": {"activation_checkpointing": {}}}
    end = alone(goes_on(tmp_path, model=PARTS["lora"], **given))[-1]
    assert end.result.unkept is None


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("part", PARTS)
def test_it_goes_on_with_another_number_of_workers(goes_on, alone, pair, tmp_path, stage, part):
    spec = goes_on(tmp_path / "two", 2, model=PARTS[part], zero_stage=stage)
    first = pair(spec, trials.Script(stop_at=10))
    assert first[-1] == Stopped(number=7, reason="interrupted", step=10), first[-1]
    events = alone(goes_on(tmp_path / "two", 1, model=PARTS[part], zero_stage=stage))
    assert events[0].resumed_at == 10, events[0]
    undisturbed = alone(goes_on(tmp_path / "one", 1, model=PARTS[part]))
    curves = [[loss for _, loss in e[-1].result.loss_curve] for e in (events, undisturbed)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert events[-1].result.unkept is None
    one, other = state(goes_on(tmp_path / "one", model={})), state(spec)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-4)
