"""Attention as transformers calls it: torch's own, but on a CPU in bf16.

There torch's fused kernel is several times slower than two plain products and a softmax (measured
on AVX512-BF16, 32 × 128 positions, 4 heads of 32 channels: 41 against 11 ms, forward and backward).

Of a last block nobody reads more than the masked positions, so fewer may ask than are asked.

Shape suffixes: B sequences, H heads, D positions, M asking positions of each sequence, W channels
of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mptune.models.base import LONGEST_PLAIN

NAME = "mptune"


@dataclass
class Asking:
    """Which positions of a block ask for attention in the forward that is under way.

    Attributes:
        flat_BM: their flat indices; None if all do.
    """

    flat_BM: Tensor | None = None


def plain(device: torch.device, dtype: torch.dtype, length: int) -> bool:
    """Whether attention is computed by plain products, which keep its scores."""
    return device.type == "cpu" and dtype == torch.bfloat16 and length <= LONGEST_PLAIN


def attend(
    module: nn.Module,
    query_BHDW: Tensor,
    key_BHDW: Tensor,
    value_BHDW: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What attention gives [B, D, H, W]; where the mask is False nothing is attended to.

    A module may have an `Asking`; the positions that it leaves out get zeros.
    """
    asking = getattr(module, "asking", Asking())
    if asking.flat_BM is not None and attention_mask is None:
        some = partial(_attend, module, attention_mask=None, dropout=dropout, scaling=scaling)
        return _of_some(some, asking.flat_BM, query_BHDW, key_BHDW, value_BHDW), None
    given = (query_BHDW, key_BHDW, value_BHDW, attention_mask)
    return _attend(module, *given, dropout=dropout, scaling=scaling, **more)


def _of_some(
    attention: Callable[..., tuple[Tensor, None]],
    flat_BM: Tensor,
    query_BHDW: Tensor,
    key_BHDW: Tensor,
    value_BHDW: Tensor,
) -> Tensor:
    """Attention [B, D, H, W] of the queries at these positions, zeros elsewhere."""
    query_BDHW, flat = query_BHDW.transpose(1, 2), flat_BM.flatten()
    asked = query_BDHW.flatten(0, 1).index_select(0, flat)
    query_BHMW = asked.view(*flat_BM.shape, *asked.shape[1:]).transpose(1, 2)
    found_BMHW = attention(query_BHMW, key_BHDW, value_BHDW)[0]
    whole = torch.zeros_like(query_BDHW.flatten(0, 1))
    return whole.index_copy(0, flat, found_BMHW.flatten(0, 1)).view(query_BDHW.shape)


def _attend(
    module: nn.Module,
    query_BHDW: Tensor,
    key_BHDW: Tensor,
    value_BHDW: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """`attend` for all queries that there are."""
    inputs = (query_BHDW, key_BHDW, value_BHDW)
    if not plain(query_BHDW.device, query_BHDW.dtype, key_BHDW.shape[2]):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, *inputs, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return found
    scale = query_BHDW.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHDD = (query_BHDW * scale) @ key_BHDW.transpose(-1, -2)
    if attention_mask is not None:
        scores_BHDD = scores_BHDD.masked_fill(~attention_mask, -math.inf)
    weights_BHDD = drop(torch.softmax(scores_BHDD, -1), dropout)
    return (weights_BHDD @ value_BHDW).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
