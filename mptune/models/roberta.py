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

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            RobertaConfig,
            self,
            vocabulary,
            max_position_embeddings=length,
            type_vocab_size=1,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-5,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = RobertaForMaskedLM(config)
        head, last = model.lm_head, model.roberta.encoder.layer[-1]
        return MaskedPredictor(
            model.roberta, head, predictable, model, decoder=head.decoder, last=last
        )

    def parameters(self, vocabulary: int, length: int) -> int:
        return self.classic_parameters(vocabulary, length)
