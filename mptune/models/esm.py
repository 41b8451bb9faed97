"""ESM-2 (Lin et al. 2023, doi 10.1126/science.ade2574): rotary positions, layer norm before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mptune.models.base import RotaryFamily

if TYPE_CHECKING:
    from torch import nn


class Esm(RotaryFamily):
    """The protein encoder ESM-2, without its token dropout and contact head."""

    family: Literal["esm"]

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from torch import nn
        from transformers import EsmConfig, EsmForMaskedLM

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            EsmConfig,
            self,
            vocabulary,
            max_position_embeddings=length,
            position_embedding_type="rotary",
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-5,
            token_dropout=False,
            pad_token_id=None,
            eos_token_id=None,
        )
        model = EsmForMaskedLM(config)
        # The contact head has parameters that masked prediction never uses.
        model.esm.register_module("contact_head", nn.Identity())
        last = model.esm.encoder.layer[-1]
        return MaskedPredictor(
            model.esm, model.lm_head, predictable, model, embeds_first=True, last=last
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        blocks = self.depth * self.classic_block_parameters()
        final_norm = 2 * self.width
        head = self.classic_head_parameters(vocabulary)
        return vocabulary * self.width + blocks + final_norm + head

    @property
    def kept_per_channel(self) -> float:
        """ESM's GELU is composed of single operations, and keeps two more values per unit."""
        return 9 + 4 * self.mlp_ratio

    def head_multiplications(self, vocabulary: int) -> float:
        """Its head adds a bias of all ids to the decoder's output, so all are decoded."""
        return float(self.width**2 + self.width * vocabulary)
