"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): rotary positions, gated MLP, no biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mptune.models.base import RotaryFamily

if TYPE_CHECKING:
    from torch import Tensor, nn


class ModernBert(RotaryFamily):
    """ModernBERT: every third block attends globally, the others within a window."""

    family: Literal["modernbert"]
    mlp_ratio: float = Field(1.5, gt=0, description="MLP width, gate apart, as a multiple of width")
    window: int = Field(128, gt=1, description="positions that a local block attends over")

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from torch import nn
        from transformers import ModernBertConfig, ModernBertForMaskedLM

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            ModernBertConfig,
            self,
            vocabulary,
            max_position_embeddings=length,
            local_attention=self.window,
            embedding_dropout=self.dropout,
            attention_dropout=self.dropout,
            mlp_dropout=self.dropout,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
        model = ModernBertForMaskedLM(config)
        head = nn.Sequential(model.head, model.decoder)
        return MaskedPredictor(
            model.model,
            head,
            predictable,
            model,
            self.window,
            decoder=model.decoder,
            last=model.model.layers[-1],
            narrow=_narrow,
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        width = self.width
        block = 4 * width**2 + 3 * width * self.mlp_width + 2 * width
        head = width**2 + width + vocabulary
        # The first block has no norm before its attention: the embeddings are normed already.
        return vocabulary * width + width + self.depth * block - width + width + head

    def block_multiplications(self, length: int) -> float:
        """A block has three MLP matrices; local blocks have no more than `window` keys."""
        global_blocks = -(-self.depth // 3)
        local_keys = min(length, self.window)
        keys = (global_blocks * length + (self.depth - global_blocks) * local_keys) / self.depth
        return 4 * self.width**2 + 3 * self.width * self.mlp_width + 2 * keys * self.width

    @property
    def kept_per_channel(self) -> float:
        """Rotated queries and keys, and of each unit of the MLP also the gate and their product."""
        return 11 + 4 * self.mlp_ratio

    def after_attention_multiplications(self) -> float:
        return self.width**2 + 3 * self.width * self.mlp_width


def _narrow(block: Any, choose: Callable[[Tensor], Tensor]) -> None:
    """Replace the block's forward: ModernBERT's blocks add attention's output themselves.

    Raises:
        AttributeError: this version of transformers names the parts of a block differently.
    """

    def forward(hidden_BDW: Tensor, **given: Any) -> Tensor:
        attended_KW = block.attn(block.attn_norm(hidden_BDW), **given)[0]
        hidden_KW = choose(hidden_BDW) + attended_KW
        mixed_KW: Tensor = hidden_KW + block.mlp(block.mlp_norm(hidden_KW))
        return mixed_KW

    block.attn.Wo.register_forward_pre_hook(lambda module, given: (choose(given[0]),))
    block.forward = forward
