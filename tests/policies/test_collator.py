"""The collator: what it masks, and that a batch's step does not depend on who draws it when."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mptune
from mptune.errors import InputError
from mptune.policies._collator import STAMP, _Stamped, _StampingSampler, word_joins
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


def test_unattached_it_counts_its_calls(tokenizer):
    make = collator(tokenizer, kind="linear", start=1.0, end=0.2, steps=8)
    found = rates(make(examples([12] * 4)) for _ in range(8))
    assert found == pytest.approx(np.linspace(1, 0.2, 9)[:8], abs=0.051)


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


def test_a_worker_that_does_not_know_the_step_refuses(tokenizer):
    make = collator(tokenizer, kind="linear", start=1.0, end=0.2)
    with pytest.raises(InputError, match=r"collator\.attach\(trainer\)"):
        list(DataLoader(examples(), batch_size=2, collate_fn=make, num_workers=1))
    fixed = collator(tokenizer, kind="uniform")
    assert len(list(DataLoader(examples(), batch_size=2, collate_fn=fixed, num_workers=1))) == 2


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
