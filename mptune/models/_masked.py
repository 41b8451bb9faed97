"""The torch side that Hugging Face families share.

Shape suffixes: B sequences, D positions, K masked positions, V predictable symbols, W width.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

Config = TypeVar("Config", bound=PreTrainedConfig)


def sdpa(config: Config) -> Config:
    """The same, with torch's scaled dot product attention."""
    config._attn_implementation = "sdpa"
    return config


class MaskedPredictor(nn.Module):
    """An encoder, and a head that runs on masked positions only."""

    def __init__(self, encoder: nn.Module, head: nn.Module, predictable: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.predictable = predictable

    def forward(
        self, tokens_BD: Tensor, mask_BD: Tensor, attend_BD: Tensor | None = None
    ) -> Tensor:
        # Hugging Face would number positions by the padding id where it has one; here every
        # position is its own column, padded or not.
        positions_1D = torch.arange(tokens_BD.shape[1], device=tokens_BD.device)[None]
        hidden_BDW = self.encoder(
            input_ids=tokens_BD, attention_mask=attend_BD, position_ids=positions_1D
        )[0]
        logits_KV: Tensor = self.head(hidden_BDW[mask_BD])[:, : self.predictable]
        return logits_KV
