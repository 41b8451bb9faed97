"""Attention as transformers calls it: torch's own, but on a CPU in bf16.

There torch's fused kernel is several times slower than two plain products and a softmax (measured
on AVX512-BF16, 32 × 128 positions, 4 heads of 32 channels: 41 against 11 ms, forward and backward).

Shape suffixes: B sequences, H heads, D positions, W channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mptune.models.base import LONGEST_PLAIN

NAME = "mptune"


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
    """What attention gives [B, D, H, W]; where the mask is False nothing is attended to."""
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
