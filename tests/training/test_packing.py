"""Packed rows: every sequence once, inside a row, and the logits of the unpacked batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mptune import plugins
from mptune.spec.schema import MODEL_KEYS, build
from mptune.training.feed import Packing

FAMILIES = [name for name in plugins.modules("families") if name not in MODEL_KEYS]
SYMBOLS, LENGTH = 18, 16


def ragged(lengths):
    attend_BD = np.arange(LENGTH) < np.array(lengths)[:, None]
    rng = np.random.default_rng(0)
    tokens_BD = np.where(attend_BD, rng.integers(SYMBOLS, size=attend_BD.shape), SYMBOLS + 1)
    return tokens_BD, attend_BD


@pytest.mark.parametrize(
    ("lengths", "rows"), [([16, 8, 8], 2), ([9, 9, 9], 3), ([4] * 8, 2), ([0, 16], 2), ([1], 1)]
)
def test_rows_are_full(lengths, rows):
    tokens_BD, attend_BD = ragged(lengths)
    packing = Packing.of(attend_BD)
    assert packing.rows == rows
    documents_RD = packing.documents()
    counted = [(documents_RD == i).sum() for i in range(len(lengths))]
    assert counted == [max(n, 1) for n in lengths]
    moved_RD = packing.moved(tokens_BD, SYMBOLS + 1)
    for i, length in enumerate(lengths):
        assert (moved_RD[documents_RD == i][:length] == tokens_BD[i, :length]).all()
        assert (packing.places()[documents_RD == i] == np.arange(max(length, 1))).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_unpacked_batch(name):
    given = {"family": name, "width": 32, "depth": 3}
    if name == "modernbert":
        given["window"] = 6
    torch.manual_seed(0)
    module = build("model", given).build(SYMBOLS + 2, SYMBOLS, LENGTH).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # attention is faint at first
    tokens_BD, attend_BD = ragged([5, 16, 7, 3, 1])
    mask_BD = attend_BD & (np.random.default_rng(1).random(attend_BD.shape) < 0.5)
    inputs_BD = np.where(mask_BD, SYMBOLS, tokens_BD)
    plain = module(*(torch.from_numpy(a) for a in (inputs_BD, mask_BD, attend_BD)))
    packing = Packing.of(attend_BD)
    assert packing.rows == 2
    packed = module(
        torch.from_numpy(packing.moved(inputs_BD, SYMBOLS + 1)),
        torch.from_numpy(packing.flat(mask_BD)),
        None,
        torch.from_numpy(packing.documents()),
        torch.from_numpy(packing.places()),
    )
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-3)
