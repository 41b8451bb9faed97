"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's architecture with its own head module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mptune.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import nn


class Roberta(ModelFamily):
    """RoBERTa without segments; positions count from 0 instead of from the padding id."""

    family: Literal["roberta"]

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from transformers import RobertaConfig, RobertaForMaskedLM

        from mptune.models._masked import MaskedPredictor, with_attention

        config = RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.attention_heads,
            intermediate_size=self.mlp_width,
            max_position_embeddings=length,
            type_vocab_size=1,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-5,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = RobertaForMaskedLM(with_attention(config))
        head, last = model.lm_head, model.roberta.encoder.layer[-1]
        return MaskedPredictor(
            model.roberta, head, predictable, model, decoder=head.decoder, last=last
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        embeddings = (vocabulary + length + 1) * self.width + 2 * self.width
        blocks = self.depth * self.classic_block_parameters()
        return embeddings + blocks + self.classic_head_parameters(vocabulary)
