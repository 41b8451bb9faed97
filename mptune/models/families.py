"""Families that transformers implements, trained from scratch.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from mptune.models.base import ModelFamily, RotaryFamily

if TYPE_CHECKING:
    from torch import Tensor, nn


class TransformersFamily(ModelFamily):
    """Base of the families whose module is built of a model of transformers."""

    ARCHITECTURE: ClassVar[str] = ""
    """transformers has the classes `…Config` and `…ForMaskedLM`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Values of the configuration besides the sizes."""

    @abstractmethod
    def parts(self, model: Any) -> dict[str, Any]:
        """Arguments of `MaskedPredictor`: the parts of a model."""

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        import transformers

        from mptune.models._masked import MaskedPredictor, configured

        kind = getattr(transformers, f"{self.ARCHITECTURE}Config")
        config = configured(kind, self, vocabulary, length, **self.settings())
        model = getattr(transformers, f"{self.ARCHITECTURE}ForMaskedLM")(config)
        return MaskedPredictor(predictable=predictable, pretrained=model, **self.parts(model))

    def transformers_dropout(self) -> dict[str, float]:
        """The dropout of blocks, under the names of most configurations."""
        return dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), self.dropout)


class Bert(TransformersFamily):
    """BERT without segments, pooler and next-sentence head.

    Source: Devlin et al. 2018, arXiv 1810.04805; learned positions, norm after sublayers.
    """

    family: Literal["bert"] = "bert"
    ARCHITECTURE = "Bert"

    def settings(self) -> dict[str, Any]:
        return {"type_vocab_size": 1, **self.transformers_dropout()}

    def parts(self, model: Any) -> dict[str, Any]:
        last, decoder = model.bert.encoder.layer[-1], model.cls.predictions.decoder
        return {"encoder": model.bert, "head": model.cls, "decoder": decoder, "last": last}


class Roberta(TransformersFamily):
    """RoBERTa without segments; positions count from 0 instead of from the padding id.

    Source: Liu et al. 2019, arXiv 1907.11692; BERT's architecture with its own head module.
    """

    family: Literal["roberta"] = "roberta"
    ARCHITECTURE = "Roberta"

    def settings(self) -> dict[str, Any]:
        none = dict.fromkeys(("bos_token_id", "eos_token_id"))
        norm = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
        return {**norm, **none, **self.transformers_dropout()}

    def parts(self, model: Any) -> dict[str, Any]:
        encoder, head = model.roberta, model.lm_head
        last = encoder.encoder.layer[-1]
        return {"encoder": encoder, "head": head, "decoder": head.decoder, "last": last}


class Esm(TransformersFamily, RotaryFamily):
    """The protein encoder ESM-2, without its token dropout and contact head.

    Source: Lin et al. 2023, doi 10.1126/science.ade2574; rotary positions, norm before sublayers.
    """

    family: Literal["esm"] = "esm"
    ARCHITECTURE = "Esm"

    def settings(self) -> dict[str, Any]:
        rotary = {"position_embedding_type": "rotary", "layer_norm_eps": 1e-5}
        none = {"token_dropout": False, "eos_token_id": None}
        return {**rotary, **none, **self.transformers_dropout()}

    def parts(self, model: Any) -> dict[str, Any]:
        from torch import nn

        # The contact head has parameters that masked prediction never uses.
        model.esm.register_module("contact_head", nn.Identity())
        last = model.esm.encoder.layer[-1]
        return {"encoder": model.esm, "head": model.lm_head, "embeds_first": True, "last": last}

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


class ModernBert(TransformersFamily, RotaryFamily):
    """ModernBERT: every third block attends globally, the others within a window.

    Source: Warner et al. 2024, arXiv 2412.13663; rotary positions, gated MLP, no biases.
    """

    family: Literal["modernbert"] = "modernbert"
    ARCHITECTURE = "ModernBert"
    mlp_ratio: float = Field(1.5, gt=0, description="MLP width, gate apart, as a multiple of width")
    window: int = Field(128, gt=1, description="positions that a local block attends over")

    def settings(self) -> dict[str, Any]:
        names = ("embedding_dropout", "attention_dropout", "mlp_dropout")
        special = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        dropout = dict.fromkeys(names, self.dropout)
        return {"local_attention": self.window, **dropout, **dict.fromkeys(special)}

    def parts(self, model: Any) -> dict[str, Any]:
        from torch import nn

        return {
            "encoder": model.model,
            "head": nn.Sequential(model.head, model.decoder),
            "window": self.window,
            "decoder": model.decoder,
            "last": model.model.layers[-1],
            "narrow": _narrow,
        }

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
        return hidden_KW + block.mlp(block.mlp_norm(hidden_KW))

    block.attn.Wo.register_forward_pre_hook(lambda module, given: (choose(given[0]),))
    block.forward = forward
