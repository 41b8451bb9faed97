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

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            BertConfig,
            self,
            vocabulary,
            max_position_embeddings=length,
            type_vocab_size=1,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=None,
        )
        model = BertForMaskedLM(config)
        head, last = model.cls, model.bert.encoder.layer[-1]
        return MaskedPredictor(
            model.bert, head, predictable, model, decoder=head.predictions.decoder, last=last
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        return self.classic_parameters(vocabulary, length)
