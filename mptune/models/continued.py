"""A masked language model that is trained already, and goes on with other data.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, field_validator

from mptune.models.own import CountedModel
from mptune.spec.schema import Section

if TYPE_CHECKING:
    from mptune.models.pretrained import ContinuedMaskedLM


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by the package peft; all else is frozen.

    Attributes:
        rank: of the change of each weight matrix.
        alpha: the change is multiplied by alpha / rank; default 2 x rank.
        targets: ends of the names of the linear layers that have one, e.g. [query, value]; default
            all but the output layer.
    """

    rank: int = Field(8, gt=0)
    alpha: float | None = Field(None, gt=0)
    targets: tuple[str, ...] | None = Field(None, min_length=1)


class ContinuedModel(CountedModel):
    """Continued pre-training: `from: FOLDER`, or a name on the Hugging Face hub.

    Any checkpoint that `transformers.AutoModelForMaskedLM` opens, with weights as safetensors; no
    code of the checkpoint is run. The data are text in the checkpoint's own tokenizer, and each
    row stands between the special tokens that the checkpoint was trained with.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    family: Literal["from"] = "from"
    source: str = Field(
        alias="from",
        min_length=1,
        description="folder of a checkpoint that transformers opens, or its name on the hub",
    )
    revision: str | None = Field(None, description="on the hub: a branch, a tag or a commit")
    freeze: int | Literal["embeddings"] = Field(
        0,
        description="layers from the first one on that do not train, with the embeddings; 0: all "
        "train; embeddings: these only do not",
    )
    lora: Lora | None = Field(
        None, description="train low-rank adapters only, and merge them into the kept weights"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _counts_layers(cls, given: object) -> object:
        if given == "embeddings" or (type(given) is int and given >= 0):
            return given
        raise ValueError("is not a number of layers, and not embeddings")

    @field_validator("lora")
    @classmethod
    def _peft_is_there(cls, lora: Lora | None) -> Lora | None:
        if lora is not None and find_spec("peft") is None:
            raise ValueError("needs the package peft: pip install 'mptune[lora]'")
        return lora

    def words(self) -> str:
        said = [f"{Path(self.source).name}, continued"]
        if self.freeze:
            layers = "1 layer" if self.freeze == 1 else f"{self.freeze} layers"
            said.append(f"{'embeddings' if self.freeze == 'embeddings' else layers} frozen")
        if self.lora is not None:
            said.append(f"lora {self.lora.rank}")
        return " · ".join(said)

    def build(self, vocabulary: int, predictable: int, length: int) -> ContinuedMaskedLM:
        from mptune.models.pretrained import ContinuedMaskedLM, PretrainedMaskedLM
        from mptune.models.pretrained.trainable import add_adapters, freeze

        checkpoint = PretrainedMaskedLM.open(self.source, self.revision, to_train=True)
        if self.freeze:
            freeze(checkpoint.model, self.source, self.freeze)
        if self.lora is not None:
            alpha = 2.0 * self.lora.rank if self.lora.alpha is None else self.lora.alpha
            add_adapters(checkpoint.model, self.lora.rank, alpha, self.lora.targets)
        return ContinuedMaskedLM(checkpoint, predictable, length)
