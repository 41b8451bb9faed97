"""Families that transformers implements, trained from scratch.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mptune.models.base import ModelFamily, RotaryFamily

if TYPE_CHECKING:
    from torch import Tensor, nn


class Bert(ModelFamily):
    """BERT without segments, pooler and next-sentence head.

    Source: Devlin et al. 2018, arXiv 1810.04805; learned positions, norm after sublayers.
    """

    family: Literal["bert"] = "bert"

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            BertConfig, self, vocabulary, length, type_vocab_size=1, **self.transformers_dropout()
        )
        model = BertForMaskedLM(config)
        head, last = model.cls, model.bert.encoder.layer[-1]
        return MaskedPredictor(
            model.bert, head, predictable, model, decoder=head.predictions.decoder, last=last
        )


class Roberta(ModelFamily):
    """RoBERTa without segments; positions count from 0 instead of from the padding id.

    Source: Liu et al. 2019, arXiv 1907.11692; BERT's architecture with its own head module.
    """

    family: Literal["roberta"] = "roberta"

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from transformers import RobertaConfig, RobertaForMaskedLM

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            RobertaConfig,
            self,
            vocabulary,
            length,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            bos_token_id=None,
            eos_token_id=None,
            **self.transformers_dropout(),
        )
        model = RobertaForMaskedLM(config)
        head, last = model.lm_head, model.roberta.encoder.layer[-1]
        return MaskedPredictor(
            model.roberta, head, predictable, model, decoder=head.decoder, last=last
        )


class Esm(RotaryFamily):
    """The protein encoder ESM-2, without its token dropout and contact head.

    Source: Lin et al. 2023, doi 10.1126/science.ade2574; rotary positions, norm before sublayers.
    """

    family: Literal["esm"] = "esm"

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from torch import nn
        from transformers import EsmConfig, EsmForMaskedLM

        from mptune.models._masked import MaskedPredictor, configured

        config = configured(
            EsmConfig,
            self,
            vocabulary,
            length,
            position_embedding_type="rotary",
            layer_norm_eps=1e-5,
            token_dropout=False,
            eos_token_id=None,
            **self.transformers_dropout(),
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


class ModernBert(RotaryFamily):
    """ModernBERT: every third block attends globally, the others within a window.

    Source: Warner et al. 2024, arXiv 2412.13663; rotary positions, gated MLP, no biases.
    """

    family: Literal["modernbert"] = "modernbert"
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
            length,
            local_attention=self.window,
            embedding_dropout=self.dropout,
            attention_dropout=self.dropout,
            mlp_dropout=self.dropout,
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
