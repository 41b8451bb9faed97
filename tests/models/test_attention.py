"""Attention by plain products is the attention of torch's kernels."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mptune.models import _masked
from mptune.spec.schema import build

CPU = torch.device("cpu")


def outcome(dtype, mask, monkeypatch, longest=512):
    """Output and gradients, in fp32."""
    monkeypatch.setattr(_masked, "LONGEST_PLAIN", longest)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 8, 4, generator=generator).to(dtype) for _ in range(3)]
    for tensor in inputs:
        tensor.requires_grad_()
    module = nn.Module()
    module.is_causal = False
    out_BDHW, weights = _masked.attend(module, *inputs, mask)
    assert weights is None
    out_BDHW.square().sum().backward()
    return [out_BDHW.float(), *(tensor.grad.float() for tensor in inputs)]


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_give_what_the_kernel_gives(monkeypatch, masked):
    mask = None
    if masked:
        mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.6
        mask |= torch.eye(8, dtype=torch.bool)
    plain = outcome(torch.bfloat16, mask, monkeypatch)
    for exact, kernel in (
        (torch.float32, outcome(torch.float32, mask, monkeypatch)),
        (torch.bfloat16, outcome(torch.bfloat16, mask, monkeypatch, longest=0)),
    ):
        for mine, theirs in zip(plain, kernel, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0.06, rtol=0.05, msg=str(exact))


def test_when_it_is_plain():
    assert _masked.is_plain(CPU, torch.bfloat16, 512)
    assert not _masked.is_plain(CPU, torch.bfloat16, 513)
    assert not _masked.is_plain(CPU, torch.float32, 16)
    assert not _masked.is_plain(torch.device("cuda"), torch.bfloat16, 16)


def test_saved_models_ask_for_no_attention_of_ours(tmp_path):
    module = build("model", {"family": "bert", "width": 16, "depth": 1}).build(13, 11, 8)
    module.save_pretrained(str(tmp_path))
    assert _masked.ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
