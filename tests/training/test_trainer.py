"""Training a checkpoint gives the losses of transformers.Trainer on the same batches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mptune.data._table import TokenTable
from mptune.spec.schema import build
from mptune.tools.check import check_folder
from mptune.training.execution import prepare
from mptune.training.feed import BatchKey, Feed, Inputs
from mptune.training.ranks import Ranks
from mptune.trial import PrepareRequest
from tests import checkpoints
from tests.training.trials import SCORE, trial

STEPS, BATCH, LENGTH, PEAK, WARMUP = 40, 16, 24, 3e-3, 0.1


def trainer_losses(base, batches, folder):
    """The losses before each step of a Trainer with an optimizer of its own."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

    tokenizer, losses = AutoTokenizer.from_pretrained(base), []

    def loss(outputs, labels, **_):
        # Special symbols do not occur in text, so mptune bans them from the logits.
        banned = torch.tensor(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}))
        logits = outputs.logits.index_fill(-1, banned, -math.inf)
        mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        losses.append(mean.item())
        return mean

    def factor(step):
        s = (step + 0.5) / STEPS
        return s / WARMUP if s < WARMUP else (1 + math.cos(math.pi * (s - WARMUP) / 0.9)) / 2

    class Fed(Trainer):
        def get_train_dataloader(self):
            return batches

        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = LambdaLR(self.optimizer, factor)
            return self.lr_scheduler

    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=PEAK, weight_decay=0.1, adam_beta1=0.9,
        adam_beta2=0.98, adam_epsilon=1e-6, max_grad_norm=1.0, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_pretrained(base)
    Fed(model, arguments, compute_loss_func=loss).train()
    return losses


def as_trainer_takes_it(batch, tokenizer):
    """Rows between [CLS] and [SEP], padded on the right, as the tokenizer writes them."""
    rows = {"input_ids": [], "labels": [], "attention_mask": []}
    width = LENGTH + 2
    for tokens, inputs, mask, length in zip(
        batch.tokens, batch.drawn.inputs_BD, batch.drawn.mask_BD, batch.lengths, strict=True
    ):
        shown = np.where(mask, tokenizer.mask_token_id, inputs)[:length].tolist()
        ids = [tokenizer.cls_token_id, *shown, tokenizer.sep_token_id]
        labels = [-100, *np.where(mask, tokens.astype(int), -100)[:length].tolist(), -100]
        rows["input_ids"].append(ids + [tokenizer.pad_token_id] * (width - len(ids)))
        rows["labels"].append(labels + [-100] * (width - len(ids)))
        rows["attention_mask"].append([1] * len(ids) + [0] * (width - len(ids)))
    return {name: torch.tensor(values) for name, values in rows.items()}


def lines(folder, tokenizer):
    """A section of text, and what it is prepared as."""
    (folder / "text.txt").write_text("\n".join(checkpoints.sentences(200, seed=5)))
    data = {"kind": "text", "source": str(folder / "text.txt"), "documents": "line",
            "length": LENGTH, "tokenizer": tokenizer}  # fmt: skip
    plan, cache = str(folder / "plan.npz"), str(folder / "cache")
    return data, prepare(PrepareRequest(data=data, score=SCORE, cache=cache, plan=plan))


@pytest.mark.parametrize("family", ["bert", "albert"])  # a fast path, and the general one
def test_losses_are_those_of_transformers_trainer(alone, tmp_path, family):
    from transformers import AutoTokenizer

    base = checkpoints.save(tmp_path / "base", steps=20, family=family)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    data, prepared = lines(tmp_path, base)
    policy = {"kind": "linear", "start": 0.6, "end": 0.15, "reduction": "token_mean"}
    training = {
        "budget_tokens": STEPS * BATCH * LENGTH,
        "batch_size": BATCH,
        "micro_batch_size": BATCH // 2,
        "optimizer": {"learning_rate": PEAK, "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "warmup": WARMUP},
    }
    spec = trial(prepared, data, tmp_path / "trial", model={"from": base}, policy=policy,
                 training=training)  # fmt: skip
    events = alone(spec)
    ours = [loss for _, loss in events[-1].result.loss_curve]

    table = TokenTable.open(prepared.table)
    assert not table.train.observed.all(), "some rows are padded"
    law = build("policy", policy)
    feed = Feed(
        Inputs(
            number=0, seed=spec.seed, training=spec.training, rungs=(), policy=law,
            family=build("model", {"from": base}), train=table.train,
            vocabulary_size=table.vocabulary_size,
        ),
        Ranks(),
    )  # fmt: skip
    keys = [BatchKey(step, step / STEPS, law, False) for step in range(STEPS)]
    tokenizer = AutoTokenizer.from_pretrained(base)
    batches = [as_trainer_takes_it(feed.draw(key), tokenizer) for key in keys]
    theirs = trainer_losses(base, batches, tmp_path / "trainer")
    assert len(ours) == len(theirs) == STEPS
    assert ours[-1] < ours[0] - 0.3
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_decoder_is_trained_as_a_masked_diffusion_model_and_opened_elsewhere(alone, tmp_path):
    base = checkpoints.save(tmp_path / "base", steps=20, family="llama")
    data, prepared = lines(tmp_path, base)
    training = {"keep_weights": True, "optimizer": {"learning_rate": PEAK}}
    spec = trial(prepared, data, tmp_path / "trial", model={"from": base, "freeze": "embeddings"},
                 policy={"kind": "uniform"}, training=training)  # fmt: skip
    result = alone(spec)[-1].result
    assert result.unkept is None
    assert result.cost.parameters > 0
    card = (tmp_path / "trial" / "model" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(FOLDER)" in card
    assert "attention_mask is [B, 1, D, D]" in card
    assert "fill-mask" not in card
    assert check_folder(tmp_path / "trial")[1] < 1e-5
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "base", tmp_path / "trial" / "model")
    )
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name], after[name])
