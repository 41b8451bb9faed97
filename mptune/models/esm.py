"""ESM-2 (Lin et al. 2023, doi 10.1126/science.ade2574): rotary positions, layer norm before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from mptune.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import nn


class Esm(ModelFamily):
    """The protein encoder ESM-2, without its token dropout and contact head."""

    family: Literal["esm"]

    @model_validator(mode="after")
    def _heads_can_rotate(self) -> Self:
        if self.width // self.attention_heads % 2:
            raise ValueError(
                f"rotary positions need an even width per head; width {self.width} over "
                f"{self.attention_heads} heads is {self.width // self.attention_heads}"
            )
        return self

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from torch import nn
        from transformers import EsmConfig, EsmForMaskedLM

        from mptune.models._masked import MaskedPredictor, sdpa

        config = EsmConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.attention_heads,
            intermediate_size=self.mlp_width,
            max_position_embeddings=length,
            position_embedding_type="rotary",
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-5,
            token_dropout=False,
            pad_token_id=None,
            eos_token_id=None,
        )
        model = EsmForMaskedLM(sdpa(config))
        # It has parameters of its own that masked prediction never uses.
        model.esm.register_module("contact_head", nn.Identity())
        return MaskedPredictor(model.esm, model.lm_head, predictable)

    def parameters(self, vocabulary: int, length: int) -> int:
        width, hidden = self.width, self.mlp_width
        block = 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width
        head = width * (width + 1) + 2 * width + vocabulary
        return vocabulary * width + self.depth * block + 2 * width + head
