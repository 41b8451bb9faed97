"""The collator: what it masks, and that a batch's step does not depend on who draws it when."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import mptune
from mptune.errors import InputError
from mptune.policies._collator import (
    STAMP,
    _Stamped,
    _StampedStream,
    _StampingSampler,
    word_joins,
)
from mptune.spec.schema import build

EXAMPLE = Path(__file__).parents[2] / "docs" / "trainer.md"
LENGTHS = (12, 7, 9, 12)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##x", "##y"]
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(pieces)}, unk_token="[UNK]"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    specials = dict(zip(names, pieces[:5], strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, **specials)


def examples(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [
        {"input_ids": [2, *rng.integers(5, 13, n - 2).tolist(), 3], "text": "unused"}
        for n in lengths
    ]


def collator(tokenizer, steps=10, **policy):
    return mptune.MaskingCollator(build("policy", policy), tokenizer, steps)


def test_counts_are_exact_and_specials_and_padding_are_left(tokenizer):
    batch = collator(tokenizer, kind="fixed", rate=0.5)(examples())
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    masked_BD = batch["labels"] != -100
    assert masked_BD.sum(1).tolist() in [[5, 2, 3, 5], [5, 2, 4, 5], [5, 3, 3, 5], [5, 3, 4, 5]]
    assert (batch["input_ids"][masked_BD] == tokenizer.mask_token_id).all()
    assert (batch["labels"][masked_BD] >= 5).all()
    again = torch.where(masked_BD, batch["labels"], batch["input_ids"])
    for row, example in zip(again.tolist(), examples(), strict=True):
        assert row[: len(example["input_ids"])] == example["input_ids"]


def test_it_is_shaped_like_the_collator_it_replaces(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    given = [{"input_ids": e["input_ids"]} for e in examples()]
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)(given)
    ours = collator(tokenizer, kind="fixed", rate=0.3)(given)
    assert {k: (v.dtype, v.shape) for k, v in ours.items()} == {
        k: (v.dtype, v.shape) for k, v in theirs.items()
    }


def rates(batches):
    """Masked share of the 10 maskable positions, batch by batch."""
    return [float((b["labels"] != -100).float().sum(1).mean() / 10) for b in batches]


def loader(collate, workers, epochs=3, skip=0):
    """What an attached trainer iterates over: batches of 4, an optimizer step each."""
    dataset = examples([12] * 18)
    sampler = _StampingSampler(len(dataset), 4, seed=1)
    made = DataLoader(
        _Stamped(dataset), batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers
    )
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += list(made)
    return batches[skip:]


@pytest.mark.parametrize("workers", [1, 2])
def test_prefetching_workers_draw_the_same_batches(tokenizer, workers):
    policy = {"kind": "linear", "start": 1.0, "end": 0.1}
    alone = loader(collator(tokenizer, steps=15, **policy), 0)
    ahead = loader(collator(tokenizer, steps=15, **policy), workers)
    assert rates(alone) == pytest.approx(np.linspace(1, 0.1, 16)[:15], abs=0.051)
    assert all((a["labels"] == b["labels"]).all() for a, b in zip(alone, ahead, strict=True))


class Stream(IterableDataset):
    """18 examples, shared among the loader's workers by batches of 4."""

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        yield from (e for i, e in enumerate(examples([12] * 18)) if i // 4 % workers == worker)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_is_stamped_in_the_order_in_which_its_batches_are_taken(tokenizer, workers):
    make = collator(tokenizer, steps=15, kind="linear", start=1.0, end=0.1)
    stream = _StampedStream(Stream(), 4, 4, workers)
    made = DataLoader(stream, batch_size=4, collate_fn=make, num_workers=workers)
    found = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        found += list(made)
    assert rates(found) == pytest.approx(np.linspace(1, 0.1, 16)[:15], abs=0.051)


def test_a_stream_with_fewer_shards_than_workers():
    class OneShard(Stream):
        num_shards = 1

        def __iter__(self):
            yield from examples([12] * 18) if get_worker_info().id == 0 else ()

    made = DataLoader(_StampedStream(OneShard(), 4, 4, 2), 4, collate_fn=list, num_workers=2)
    assert [batch[0][STAMP][0] for batch in made] == [0, 1, 2, 3, 4]


def test_a_trainer_streams(tokenizer, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **sizes))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    make, found = collator(tokenizer, steps=8, kind="linear", start=1.0, end=0.2), []
    trainer = Trainer(model, arguments, train_dataset=Stream(), data_collator=make)
    make.attach(trainer)
    batches = trainer.get_train_dataloader()
    trainer.get_train_dataloader = lambda: batches
    trainer.training_step = lambda model, batch, *_: found.append(batch) or torch.zeros(())
    trainer.train()
    # 5 batches an epoch: the fifth counts towards the next step.
    steps = [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7]
    assert rates(found) == pytest.approx(1 - 0.1 * np.array(steps), abs=0.051)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_schedule_without_steps_is_refused(tokenizer, workers):
    make = collator(tokenizer, kind="linear", start=1.0, end=0.2)
    with pytest.raises(InputError, match=r"collator\.attach\(trainer\)"):
        list(DataLoader(examples(), batch_size=2, collate_fn=make, num_workers=workers))
    fixed = collator(tokenizer, kind="uniform")
    made = DataLoader(examples(), batch_size=2, collate_fn=fixed, num_workers=workers)
    assert len(list(made)) == 2


def test_whole_words(tokenizer):
    joins = word_joins(tokenizer)
    assert joins[0].tolist() == [False] * 13 + [True] * 2
    make = collator(tokenizer, kind="fixed", rate=0.5, structure="whole_word")
    example = {"input_ids": [2, 5, 13, 14, 6, 13, 14, 3], STAMP: (0, 4)}
    masked_D = make([example])["labels"][0] != -100
    assert masked_D.tolist() in [
        [False, *w, *(not x for x in w), False] for w in ([True] * 3, [False] * 3)
    ]


@pytest.mark.parametrize(
    ("policy", "steps", "message"),
    [
        ({"kind": "adaptive"}, 5, "is learned from the loss"),
        ({"kind": "uniform"}, 0, "total_steps 0"),
    ],
)
def test_what_it_refuses(tokenizer, policy, steps, message):
    with pytest.raises(InputError, match=message):
        collator(tokenizer, steps, **policy)


class Outputs:
    def __init__(self, logits):
        self.logits = logits


def test_loss_weighs_sequences_as_the_policy_says(tokenizer):
    labels_BD = torch.tensor([[1, -100, -100], [0, 0, 0]])
    logits = torch.zeros(2, 3, 2)
    logits[0, 0, 1] = 3.0
    each = torch.nn.functional.cross_entropy(logits[0, :1], labels_BD[0, :1])
    sequence = collator(tokenizer, kind="uniform").loss(Outputs(logits), labels_BD)
    assert float(sequence) == pytest.approx((float(each) + np.log(2)) / 2)
    token = collator(tokenizer, kind="uniform", reduction="token_mean")
    assert float(token.loss(Outputs(logits), labels_BD, 4)) == pytest.approx(
        (float(each) + 3 * np.log(2)) / 4
    )


def test_the_documented_example_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), flags=re.DOTALL)
    exec(compile(example, "trainer.md", "exec"), {"__name__": "example"})
    line = capsys.readouterr().out.splitlines()[-1]
    first, last = map(float, re.fullmatch(r"loss (\S+) -> (\S+)", line).groups())
    assert last < 0.6 * first
