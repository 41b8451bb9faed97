"""The torch side that Hugging Face families share.

Shape suffixes: B sequences, D positions, K masked positions, V predictable symbols, W width,
A axes of the grid that positions lie on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    place_AD: Tensor | None
    banned_DV: Tensor | None

    def __init__(self, encoder: nn.Module, head: nn.Module, predictable: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.predictable = predictable
        self.axes = nn.ModuleList()
        self.register_buffer("place_AD", None)
        self.register_buffer("banned_DV", None)

    def lay_out(self, axes: Sequence[int], sizes: Sequence[int]) -> None:
        """Give positions their coordinates on a grid, and ban symbols that a position cannot have.

        Args:
            axes: sizes of the grid, slowest first; an embedding of each coordinate is added to
                the token's. Empty: positions are a line, and the encoder knows it.
            sizes: possible symbols at each position [D]; empty if all are possible everywhere.
        """
        width = self.encoder.get_input_embeddings().embedding_dim  # type: ignore[operator]
        for size in axes:
            table = nn.Embedding(size, width)
            nn.init.normal_(table.weight, std=0.02)
            self.axes.append(table)
        if axes:
            grid_D = torch.arange(math.prod(axes))
            self.place_AD = torch.stack(torch.unravel_index(grid_D, tuple(axes)))
        if sizes and min(sizes) < self.predictable:
            self.banned_DV = torch.arange(self.predictable) >= torch.tensor(sizes)[:, None]

    def forward(
        self, tokens_BD: Tensor, mask_BD: Tensor, attend_BD: Tensor | None = None
    ) -> Tensor:
        # Hugging Face would number positions by the padding id where it has one; here every
        # position is its own column, padded or not.
        positions_1D = torch.arange(tokens_BD.shape[1], device=tokens_BD.device)[None]
        hidden_BDW = self.encoder(
            **self._inputs(tokens_BD), attention_mask=attend_BD, position_ids=positions_1D
        )[0]
        logits_KV: Tensor = self.head(hidden_BDW[mask_BD])[:, : self.predictable]
        if self.banned_DV is not None:
            banned_KV = self.banned_DV[mask_BD.nonzero()[:, 1]]
            logits_KV = logits_KV.masked_fill(banned_KV, -math.inf)
        return logits_KV

    def _inputs(self, tokens_BD: Tensor) -> dict[str, Tensor]:
        if self.place_AD is None:
            return {"input_ids": tokens_BD}
        tokens_BDW = self.encoder.get_input_embeddings()(tokens_BD)  # type: ignore[operator]
        pairs = zip(self.axes, self.place_AD, strict=True)
        grid_DW = torch.stack([table(place_D) for table, place_D in pairs]).sum(0)
        return {"inputs_embeds": tokens_BDW + grid_DW}
