"""The torch side that Hugging Face families share: attention, and a head on masked positions only.

Attention is torch's own, except on a CPU in bf16. There torch's fused kernel is several times
slower than two plain products and a softmax (measured on AVX512-BF16, 32 × 128 positions, 4 heads
of 32 channels: 41 against 11 ms, forward and backward).

Shape suffixes: B sequences, H heads, D positions, K masked positions, V predictable symbols,
W width (of a head, in attention), A axes of the grid that positions lie on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear, pad
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mptune.errors import InputError
from mptune.models._grid import GridConfig, GridForMaskedLM
from mptune.models.base import IMPOSSIBLE, LONGEST_PLAIN, MaskedModel, ModelFamily

if TYPE_CHECKING:
    from mptune.data._table import TokenTable

Config = TypeVar("Config", bound=PreTrainedConfig)

TILE_ON_GPU = 64
"""Tensor cores multiply matrices of such sizes twice as fast (H100, 30,522 symbols: 4.5 against
8.7 ms for 16,384 rows of 768 channels, forward and backward)."""

ROWS = 8
"""Held-out sequences on which kept weights are checked."""

SAME_NATS = 1e-5
"""Most that log-probabilities of a model opened by transformers may differ from those of mptune."""

ATTENTION = "mptune"
"""Name under which transformers knows `attend`."""


def configured(
    kind: Callable[..., Config], family: ModelFamily, vocabulary: int, length: int, **fields: Any
) -> Config:
    """A configuration of transformers with the family's sizes and the attention of this module."""
    return kind(
        vocab_size=vocabulary,
        hidden_size=family.width,
        num_hidden_layers=family.depth,
        num_attention_heads=family.attention_heads,
        intermediate_size=family.mlp_width,
        max_position_embeddings=length,
        pad_token_id=None,
        attn_implementation=ATTENTION,
        **fields,
    )


def is_plain(device: torch.device, dtype: torch.dtype, length: int) -> bool:
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
    """Attention [B, D, H, W] as transformers calls it; nothing is attended to where the mask is
    False.
    """
    kind, dtype = query_BHDW.device, query_BHDW.dtype
    if kind.type != "meta" and torch.is_autocast_enabled(kind.type):
        dtype = torch.get_autocast_dtype(kind.type)
    if not is_plain(kind, dtype, key_BHDW.shape[2]):
        inputs = (query_BHDW, key_BHDW, value_BHDW)
        found: Tensor = sdpa_attention_forward(
            module, *inputs, attention_mask, dropout=dropout, scaling=scaling, **more
        )[0]
        return found, None
    scale = query_BHDW.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHDD = (query_BHDW * scale) @ key_BHDW.transpose(-1, -2)
    if attention_mask is not None:
        scores_BHDD = scores_BHDD.masked_fill(~attention_mask, -math.inf)
    weights_BHDD = drop(torch.softmax(scores_BHDD, -1), dropout)
    return (weights_BHDD @ value_BHDW).transpose(1, 2).contiguous(), None


def mask_of_all(*, local_size: int | None = None, **given: Any) -> Tensor | None:
    """The mask where `MaskedPredictor` gives none: a window, or None if all positions attend.

    Versions of transformers make a mask of ones while torch compiles them, and a GPU then computes
    attention by plain products in single precision.
    """
    if local_size is None:
        return None
    return sdpa_mask(local_size=local_size, **given)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, mask_of_all)
AutoConfig.register(GridConfig.model_type, GridConfig)
AutoModelForMaskedLM.register(GridConfig, GridForMaskedLM)


def auto_class(name: str | Path, revision: str = "main", own: bool = False) -> Any:
    """The class of transformers that opens a model as a masked one: `attend_both_ways` a decoder.

    Args:
        own: whether to run the folder's code.
    """
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=own)
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    decoder = not masked and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if decoder else AutoModelForMaskedLM


def attend_both_ways(model: Any) -> None:
    """Let a decoder see what follows a position, as masked diffusion models do.

    It is then called with `input_ids`, by name.

    Raises:
        InputError: it does not.
        Exception: of transformers, of a model without attention, say.
    """

    def widen(_module: nn.Module, inputs: Any, given: dict[str, Any]) -> Any:
        ids_BD, may = given["input_ids"], given.get("attention_mask")
        may_BD = torch.ones_like(ids_BD) if may is None else may
        # transformers takes a mask of every pair as it is, and else adds that of a decoder.
        may_B1DD = may_BD[:, None, None].bool().expand(-1, 1, ids_BD.shape[1], -1)
        return inputs, {**given, "attention_mask": may_B1DD, "use_cache": False}

    model.set_attn_implementation("sdpa")
    model.register_forward_pre_hook(widen, with_kwargs=True)
    with torch.inference_mode():
        first_2V = model.eval()(input_ids=torch.tensor([[3, 4], [3, 5]])).logits[:, 0]
    if not first_2V.is_meta and torch.equal(*first_2V):
        raise InputError(f"{type(model).__name__} cannot attend to what follows a position")


def logits_of_folder(folder: Path, tokens_BD: Tensor, attend_BD: Tensor, own: bool) -> Tensor:
    """Logits [B, D, V] of the model that transformers opens from a folder, in double precision.

    Args:
        own: whether to run the folder's code: of the class that the user has named.
    """
    kind = auto_class(folder, own=own)
    model: Any = kind.from_pretrained(folder, dtype=torch.float64, trust_remote_code=own)
    if kind is AutoModelForCausalLM:
        attend_both_ways(model)
    return model.eval()(input_ids=tokens_BD, attention_mask=attend_BD.long()).logits


def check_opens(
    folder: Path,
    weights: Path,
    table: TokenTable,
    family: MaskedModel,
    logits: Callable[[Path, Tensor, Tensor, bool], Tensor] = logits_of_folder,
) -> float:
    """Check that transformers opens the model that these weights are of, to the same log p.

    In double precision, where rounding is far below the tolerance for models of any size.

    Args:
        logits: opens the folder.

    Returns:
        The largest difference of a log-probability, in nats.

    Raises:
        InputError: it is larger than `SAME_NATS`.
    """
    tokens_BD = torch.from_numpy(table.heldout.tokens[:ROWS].astype(np.int64))
    attend_BD = tokens_BD != table.pad_id
    mask_BD = attend_BD & (torch.arange(table.length) % 2 == 0)
    tokens_BD[mask_BD] = table.mask_id
    with torch.inference_mode():
        module: Any = family.build(table.total_vocabulary, table.vocabulary_size, table.length)
        family.lay_out(module, tuple(table.axes.values()), table.sizes)
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        p_KV = module.double().eval()(tokens_BD, mask_BD, attend_BD).softmax(1)
        flat_K = mask_BD.flatten().nonzero()[:, 0]
        if family.family == "from":
            tokens_BD, attend_BD, flat_K = module.framed(tokens_BD, flat_K, attend_BD)
        logits_BDV = logits(folder, tokens_BD, attend_BD, family.family == "class")
        found_KV = logits_BDV.flatten(0, 1)[flat_K]
        if family.family == "from":
            found_KV[:, module.banned] = IMPOSSIBLE
        found_KV = found_KV.softmax(1)[:, : table.vocabulary_size]
    difference = float(torch.where(p_KV == found_KV, 0, (p_KV.log() - found_KV.log()).abs()).max())
    if not difference <= SAME_NATS:
        raise InputError(
            f"the kept weights give other log-probabilities in transformers, by {difference:.2g} "
            "nats; correct save_pretrained of the model, or set training.keep_weights: false"
        )
    return difference


Choose: TypeAlias = Callable[[Tensor], Tensor]
"""Hidden states [B, D, W] to those of the masked positions [K, W]."""

Narrow: TypeAlias = Callable[[Any, Choose], None]
"""Makes a block choose as soon as its attention is done."""


def _narrow_output(block: Any, choose: Choose) -> None:
    block.attention.output.register_forward_pre_hook(lambda _, given: tuple(map(choose, given)))


def first_outputs(
    layer: nn.Linear, count: int, inputs: Tensor, tile: int = 1, banned: Tensor | None = None
) -> Tensor:
    """The first `count` outputs of a linear layer, computed in multiples of `tile`.

    Those with the indices `banned` are far below all others.
    """
    weight, bias = layer.weight[:count], layer.bias[:count]
    if banned is not None:
        bias = bias.index_fill(0, banned, IMPOSSIBLE)
    if spare := -count % (TILE_ON_GPU if inputs.is_cuda else tile):
        weight, bias = pad(weight, (0, 0, 0, spare)), pad(bias, (0, spare))
    return linear(inputs, weight, bias)[:, :count]


class MaskedPredictor(nn.Module):
    """An encoder, and a head that runs on masked positions only.

    What the last block does after attention also runs on masked positions only: it mixes no
    positions, and the others are not read.

    Args:
        encoder, head: the parts of a Hugging Face model.
        predictable: V.
        pretrained: the model that they are parts of, for `save_pretrained`.
        window: positions that local blocks attend over, if the family has such blocks.
        embeds_first: the embeddings cannot read a mask over pairs of positions, and are computed
            before.
        decoder: the head's last layer, if nothing is added to its output. It then computes no
            logits of symbols that cannot be predicted; cutting them off later would copy the rest.
        last: the encoder's last block. Its module `attention.output` is called with attention's
            output and the residual stream; a family with other blocks needs `narrow`.
        narrow: see `Narrow`.
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
                first_outputs, decoder, predictable
            )
        # In tuples they are no submodules: their parameters are those of encoder and head.
        self._pretrained, self._last = (pretrained,), (last,)
        self._biased: tuple[Any] = (decoder or head,)
        self._chosen_K: Tensor | None = None
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
    ) -> Tensor:
        """logits [K, V] at the masked positions.

        Args:
            tokens_BD: input ids.
            mask: bool [B, D], or the flat indices of the masked positions [K], which the host
                does not have to wait for.
            attend_BD: positions that may be attended to; default all.
            document_BD: of packed rows, the document of each position; attention stays inside.
            place_BD: of packed rows, the position inside its document.
        """
        # Hugging Face would number positions by the padding id where it has one; here every
        # position is its own column, padded or not.
        if place_BD is None:
            place_BD = torch.arange(tokens_BD.shape[1], device=tokens_BD.device)[None]
        attention = self._attention(attend_BD, document_BD)
        given = {"input_ids": tokens_BD}
        if self.place_AD is not None:
            pairs = zip(self.axes, self.place_AD, strict=True)
            grid_DW = torch.stack([table(place_D) for table, place_D in pairs]).sum(0)
            tokens_BDW = self.encoder.get_input_embeddings()(tokens_BD)  # type: ignore[operator]
            given = {"inputs_embeds": tokens_BDW + grid_DW}
        elif attention is not None and self.embeds_first:
            embed: Any = self.encoder.embeddings
            given = {"inputs_embeds": embed(input_ids=tokens_BD, position_ids=place_BD)}
        flat_K = mask.flatten().nonzero()[:, 0] if mask.dtype == torch.bool else mask
        self._chosen_K = flat_K
        try:
            chosen_KW = self.encoder(**given, attention_mask=attention, position_ids=place_BD)[0]
        finally:
            self._chosen_K = None
        logits_KV: Tensor = self.head(chosen_KW)
        if logits_KV.shape[1] != self.predictable:
            logits_KV = logits_KV[:, : self.predictable]
        if self.banned_DV is not None:
            banned_KV = self.banned_DV[flat_K % tokens_BD.shape[1]]
            logits_KV = logits_KV.masked_fill(banned_KV, -math.inf)
        return logits_KV

    def _choose(self, hidden_BDW: Tensor) -> Tensor:
        """The masked positions' rows [K, W]; all rows outside of `forward`."""
        if self._chosen_K is None:
            return hidden_BDW
        return hidden_BDW.flatten(0, 1).index_select(0, self._chosen_K)

    def save_pretrained(self, folder: str) -> None:
        """Write a folder that `transformers.AutoModelForMaskedLM` opens to the same log p.

        Afterwards [MASK] and [PAD] have no probability in the model of transformers, either. A grid
        and banned symbols need the model class in `_grid`, which is copied into the folder.
        """
        model, predictable = self._pretrained[0], self.predictable
        # RoBERTa counts positions from the id after [PAD] on, and in training counted from 0.
        counts = model.config.model_type == "roberta"
        model.config.pad_token_id = -1 if counts else predictable + 1
        with torch.inference_mode():  # ZeRO 3 may have gathered it in that mode
            self._biased[0].bias[predictable:] = IMPOSSIBLE
        tables: list[Any] = list(self.axes)
        if self.banned_DV is None and not tables:
            model.save_pretrained(folder)
            return
        axes = [int(table.num_embeddings) for table in tables]
        sizes = [predictable] * math.prod(axes)
        if self.banned_DV is not None:
            sizes = (~self.banned_DV).sum(1).tolist()
        with torch.device("meta"):
            whole = GridForMaskedLM(GridConfig(model.config.to_dict(), axes, sizes))
        state = {f"plain.{name}": value for name, value in model.state_dict().items()}
        state |= {f"axes.{name}": value for name, value in self.axes.state_dict().items()}
        whole.save_pretrained(folder, state_dict=state)

    def checkpoint_activations(self) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them.

        The last block keeps them: they are the first that the backward pass needs.
        """
        model: Any = self._pretrained[0]
        model.gradient_checkpointing_enable({"use_reentrant": False})
        last: Any = self._last[0]
        last.gradient_checkpointing = False

    def _attention(
        self, attend_BD: Tensor | None, document_BD: Tensor | None
    ) -> Tensor | dict[str, Tensor] | None:
        """The attention mask, bool [B, 1, D, D]; by kind of block if there are local ones.

        transformers would read values to make it, for which the host would wait on a GPU.
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
