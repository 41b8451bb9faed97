"""The torch side that Hugging Face families share.

Shape suffixes: B sequences, D positions, K masked positions, V predictable symbols, W width,
A axes of the grid that positions lie on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedConfig, PreTrainedModel

from mptune.models import _attention

Config = TypeVar("Config", bound=PreTrainedConfig)


def with_attention(config: Config) -> Config:
    """The same, with the attention of `_attention`."""
    config._attn_implementation = _attention.NAME
    return config


def _first_rows(layer: nn.Linear, rows: int, inputs: Tensor) -> Tensor:
    """A linear layer's first outputs."""
    return linear(inputs, layer.weight[:rows], layer.bias[:rows])


Choose: TypeAlias = Callable[[Tensor], Tensor]
"""Hidden states [B, D, W] to those of the masked positions [K, W]."""

Narrow: TypeAlias = Callable[[Any, Choose], None]
"""Makes a block choose as soon as its attention is done."""


def _narrow_output(block: Any, choose: Choose) -> None:
    def choose_both(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(choose(hidden_BDW) for hidden_BDW in given)

    block.attention.output.register_forward_pre_hook(choose_both)


class MaskedPredictor(nn.Module):
    """An encoder, and a head that runs on masked positions only.

    So does what the last block does after attention: it mixes no positions, and nobody reads the
    others.

    Args:
        encoder, head: the parts of a Hugging Face model.
        last: the encoder's last block. Its module `attention.output` is called with what
            attention gives and with the residual stream; a family whose blocks are made otherwise
            has `narrow`.
        predictable: V.
        pretrained: the model that they are parts of, for `save_pretrained`.
        window: positions that local blocks attend over, if the family has such blocks.
        embeds_first: the embeddings cannot read a mask of who attends to whom, and are computed
            before.
        decoder: the head's last layer, where nothing is added to its output; it then computes no
            logits of symbols that cannot be predicted. To cut them off later would copy all.
    """

    place_AD: Tensor | None
    banned_DV: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        predictable: int,
        pretrained: PreTrainedModel,
        window: int | None = None,
        embeds_first: bool = False,
        decoder: nn.Linear | None = None,
        *,
        last: nn.Module,
        narrow: Narrow | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.predictable, self.window, self.embeds_first = predictable, window, embeds_first
        if decoder is not None:
            decoder.forward = partial(  # type: ignore[method-assign]
                _first_rows, decoder, predictable
            )
        # In tuples they are no submodules: their parameters are those of encoder and head.
        self._pretrained, self._last = (pretrained,), (last,)
        self._chosen_K: Tensor | None = None
        self._asking = _attention.Asking()
        for part in last.modules():
            part.asking = self._asking  # type: ignore[assignment]
        (narrow or _narrow_output)(last, self._choose)
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
        self,
        tokens_BD: Tensor,
        mask: Tensor,
        attend_BD: Tensor | None = None,
        document_BD: Tensor | None = None,
        place_BD: Tensor | None = None,
        asking_BM: Tensor | None = None,
    ) -> Tensor:
        """logits [K, V] at the masked positions.

        Args:
            tokens_BD: input ids.
            mask: bool [B, D], or the flat indices of the masked positions [K]; those need no
                look at the device's values.
            attend_BD: positions that may be attended to; default all.
            document_BD: of packed rows, the document of each position; attention stays inside.
            place_BD: of packed rows, the position inside its document.
            asking_BM: flat indices of the positions for which attention in the last block is
                computed, the masked ones and others; default all.
        """
        # Hugging Face would number positions by the padding id where it has one; here every
        # position is its own column, padded or not.
        if place_BD is None:
            place_BD = torch.arange(tokens_BD.shape[1], device=tokens_BD.device)[None]
        attention = self._attention(attend_BD, document_BD)
        given = self._inputs(tokens_BD)
        if attention is not None and self.embeds_first and self.place_AD is None:
            embed: Any = self.encoder.embeddings
            given = {"inputs_embeds": embed(input_ids=tokens_BD, position_ids=place_BD)}
        flat_K = mask.flatten().nonzero()[:, 0] if mask.dtype == torch.bool else mask
        self._chosen_K, self._asking.flat_BM = flat_K, asking_BM
        try:
            chosen_KW = self.encoder(**given, attention_mask=attention, position_ids=place_BD)[0]
        finally:
            self._chosen_K = self._asking.flat_BM = None
        logits_KV: Tensor = self.head(chosen_KW)
        if logits_KV.shape[1] != self.predictable:
            logits_KV = logits_KV[:, : self.predictable]
        if self.banned_DV is not None:
            banned_KV = self.banned_DV[flat_K % tokens_BD.shape[1]]
            logits_KV = logits_KV.masked_fill(banned_KV, -math.inf)
        return logits_KV

    def _choose(self, hidden_BDW: Tensor) -> Tensor:
        """The masked positions' rows [K, W]; all of them where the encoder is called by others."""
        if self._chosen_K is None:
            return hidden_BDW
        return hidden_BDW.flatten(0, 1).index_select(0, self._chosen_K)

    def _inputs(self, tokens_BD: Tensor) -> dict[str, Tensor]:
        if self.place_AD is None:
            return {"input_ids": tokens_BD}
        tokens_BDW = self.encoder.get_input_embeddings()(tokens_BD)  # type: ignore[operator]
        pairs = zip(self.axes, self.place_AD, strict=True)
        grid_DW = torch.stack([table(place_D) for table, place_D in pairs]).sum(0)
        return {"inputs_embeds": tokens_BDW + grid_DW}

    def save_pretrained(self, folder: str) -> None:
        """Write the whole model so that `transformers.AutoModelForMaskedLM` opens it."""
        self._pretrained[0].save_pretrained(folder)

    def checkpoint_activations(self) -> None:
        """Compute each block's activations again when going backward instead of keeping them.

        The last block keeps them: they are the first that going backward needs.
        """
        model: Any = self._pretrained[0]
        model.gradient_checkpointing_enable({"use_reentrant": False})
        last: Any = self._last[0]
        last.gradient_checkpointing = False

    def _attention(
        self, attend_BD: Tensor | None, document_BD: Tensor | None
    ) -> Tensor | dict[str, Tensor] | None:
        """Who attends to whom, bool [B, 1, D, D]; by kind of block where there are local ones.

        Made here and not by transformers, which would look at the values first: on a GPU the host
        would wait for them.
        """
        if document_BD is not None:
            may = (document_BD[:, None, :, None] == document_BD[:, None, None, :]).contiguous()
        elif attend_BD is not None:
            may = attend_BD[:, None, None, :].expand(-1, 1, attend_BD.shape[1], -1)
        else:
            return None
        if self.window is None:
            return may
        place_D = torch.arange(may.shape[-1], device=may.device)
        near_DD = (place_D[:, None] - place_D[None]).abs() <= self.window // 2
        return {"full_attention": may, "sliding_attention": may & near_DD}
