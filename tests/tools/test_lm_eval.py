"""Masked models in lm-eval: log-likelihoods against enumeration, and a real evaluation."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mptune.errors import InputError
from mptune.models.pretrained import PretrainedMaskedLM
from mptune.tools.lm_eval import AccumulatedLM
from tests import checkpoints


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return PretrainedMaskedLM.open(checkpoints.save(tmp_path_factory.mktemp("model"), steps=60))


def asked(*arguments):
    return [SimpleNamespace(args=given) for given in arguments]


def enumerated(opened, context, continuation):
    """log p of the continuation by the definition: the mean over all masks of each size."""
    before, after = opened.pieces(context), opened.pieces(continuation)
    first = len(opened.frame[0]) + len(before)
    tokens_BD = opened.encode([before + after]).tokens
    total = 0.0
    for count in range(1, len(after) + 1):
        masks = list(combinations(range(len(after)), count))
        mask_BD = np.zeros((len(masks), tokens_BD.shape[1]), bool)
        for row, mask in enumerate(masks):
            mask_BD[row, first + np.array(mask)] = True
        log_prob_BD = opened.log_prob(np.repeat(tokens_BD, len(masks), 0), mask_BD)
        total += log_prob_BD.sum() / count / len(masks)
    return total


PAIRS = (("the cat sat on", " a mat"), ("the dog", " ran far"), ("", "the home"), ("a", " cat sat"))


def test_log_likelihoods_are_those_of_all_masks_within_their_errors(opened):
    model = AccumulatedLM(opened, forwards=48)
    true = np.array([enumerated(opened, *pair) for pair in PAIRS])
    off = []
    for seed in range(8):
        model.seed = seed
        nats = np.array([found for found, _ in model.loglikelihood(asked(*PAIRS))])
        errors = np.array(model.last_errors)
        assert (errors > 0).all()
        assert (errors < 0.1 * -true).all()
        off.append((nats - true) / errors)
    # 32 values of Student's t with some 40 degrees of freedom.
    assert 0.6 < np.std(off) < 1.5
    assert abs(np.mean(off)) < 4 / np.sqrt(np.size(off))


def test_a_short_continuation_is_exact_and_what_is_likely_is_greedy(opened):
    model = AccumulatedLM(opened, forwards=15)
    ends = ("t", "z", "tz", " mat", "xyz")
    pairs = [*(("the cat sat on a ma", end) for end in ends), ("the dog", "")]
    found = model.loglikelihood(asked(*pairs))
    assert model.last_errors == [0.0] * 6
    for (nats, _), pair in zip(found[:5], pairs, strict=False):
        assert nats == pytest.approx(enumerated(opened, *pair), abs=1e-5)
    assert found[5] == (0.0, True)
    with pytest.raises(InputError, match="forwards is 1; a standard error needs 2 or more"):
        AccumulatedLM(opened, forwards=1)
    best = max("abcdefghijklmnopqrstuvwxyz .,", key=lambda c: enumerated(opened, pairs[0][0], c))
    both = model.loglikelihood(
        asked((pairs[0][0], best), (pairs[0][0], "z" if best != "z" else "x"))
    )
    assert [greedy for _, greedy in both] == [True, False]


def test_requests_are_answered_in_their_order_and_spaces_belong_to_the_continuation(opened):
    model = AccumulatedLM(opened, forwards=256, batch_size="auto")
    pairs = [("the cat sat on a", " mat"), ("", "a"), ("the cat sat on a ", "mat"), ("dog", " ran")]
    nats = [found for found, _ in model.loglikelihood(asked(*pairs))]
    assert model.pair(*pairs[0]) == model.pair(*pairs[2])
    for found, error, pair in zip(nats, model.last_errors, pairs, strict=True):
        _, after = model.pair(*pair)
        whole = pair[0] + pair[1]
        kept = len(whole) - len(after)  # one symbol is one character here
        assert abs(found - enumerated(opened, whole[:kept], whole[kept:])) <= 5 * error + 1e-6


def test_long_texts_are_scored_in_windows_and_long_contexts_cut(opened):
    model = AccumulatedLM(opened, forwards=16)
    room, text = opened.room, " ".join(checkpoints.sentences(12))
    windows = []
    model.score = lambda pairs: windows.extend(pairs) or AccumulatedLM.score(model, pairs)
    (nats,) = model.loglikelihood_rolling(asked((text,)))
    assert [token for _, after in windows for token in after] == opened.pieces(text)
    assert max(len(before) + len(after) for before, after in windows) == room
    assert [len(before) for before, _ in windows] == [0] + [room - room // 2] * (len(windows) - 1)
    found, errors, _ = AccumulatedLM.score(model, windows)
    assert nats == pytest.approx(found.sum(), rel=1e-6)
    assert model.last_errors[0] == pytest.approx(np.sqrt((errors**2).sum()), rel=1e-6)
    assert 0 < model.last_errors[0] < 0.1 * -nats
    before, after = model.pair(text, " the end")
    assert (len(before) + len(after), len(after)) == (room, 8)
    with pytest.raises(InputError, match=f"has room for {room} tokens; a continuation has"):
        model.pair("", text)
    with pytest.raises(InputError, match="generates none"):
        model.generate_until([])


class Denoiser(torch.nn.Module):
    """Not of transformers, but called like one: each position sees the mean of all."""

    def __init__(self, symbols):
        super().__init__()
        torch.manual_seed(1)
        self.config = SimpleNamespace(vocab_size=symbols)
        self.table, self.out = torch.nn.Embedding(symbols, 16), torch.nn.Linear(16, symbols)

    def forward(self, input_ids, attention_mask):
        at_BLW = self.table(input_ids) * attention_mask[..., None]
        return SimpleNamespace(logits=self.out(at_BLW + at_BLW.mean(1, keepdim=True)))


def test_a_denoiser_that_is_called_like_a_model_of_transformers():
    cut = checkpoints.tokenizer()
    opened = PretrainedMaskedLM("denoiser", Denoiser(len(cut)), cut)
    model = AccumulatedLM(opened, forwards=7)
    ((nats, _),) = model.loglikelihood(asked(("the cat", " is")))
    assert nats == pytest.approx(enumerated(opened, "the cat", " is"), abs=1e-5)
    assert model.last_errors == [0.0]


def test_a_real_evaluation(opened, tmp_path, monkeypatch):
    from lm_eval.evaluator import simple_evaluate

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    lines = checkpoints.sentences(12, seed=7)
    rows = [{"text": line, "start": line[:-2], "good": line[-2:], "bad": "zq"} for line in lines]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    choice = {
        "task": "endings", "output_type": "multiple_choice", "doc_to_text": "{{start}}",
        "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0, "target_delimiter": "",
        "metric_list": [{"metric": "acc"}], **shared,
    }  # fmt: skip
    rolling = {
        "task": "lines", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}], **shared,
    }  # fmt: skip
    found = simple_evaluate(
        model="mptune",
        model_args={"pretrained": opened.name, "forwards": 8},
        tasks=[choice, rolling],
        bootstrap_iters=0,
    )["results"]
    assert found["endings"]["acc,none"] == 1.0
    model = AccumulatedLM(opened, forwards=8)
    nats = sum(model.loglikelihood_rolling(asked(*((line,) for line in lines))))
    bits = -nats / np.log(2) / sum(map(len, lines))
    assert found["lines"]["bits_per_byte,none"] == pytest.approx(bits, rel=0.05)


def test_without_lm_eval_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(InputError, match=r"needs lm-eval: pip install 'mptune\[lm-eval\]'"):
        importlib.reload(sys.modules["mptune.tools.lm_eval"])
