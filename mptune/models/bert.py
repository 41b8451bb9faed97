"""BERT (Devlin et al. 2018, arXiv 1810.04805): learned positions, norm after sublayers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mptune.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import nn


class Bert(ModelFamily):
    """BERT without segments, pooler and next-sentence head."""

    family: Literal["bert"]

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        from mptune.models._masked import MaskedPredictor, with_attention

        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.attention_heads,
            intermediate_size=self.mlp_width,
            max_position_embeddings=length,
            type_vocab_size=1,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=None,
        )
        model = BertForMaskedLM(with_attention(config))
        decoder = model.cls.predictions.decoder
        last = model.bert.encoder.layer[-1]
        return MaskedPredictor(
            model.bert, model.cls, predictable, model, decoder=decoder, last=last
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        embeddings = (vocabulary + length + 1) * self.width + 2 * self.width
        blocks = self.depth * self.classic_block_parameters()
        return embeddings + blocks + self.classic_head_parameters(vocabulary)
