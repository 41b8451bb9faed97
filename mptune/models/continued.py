"""A masked language model that is trained already, and goes on with other data.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from mptune.models.own import CountedModel

if TYPE_CHECKING:
    from mptune.models.pretrained import ContinuedMaskedLM


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

    def words(self) -> str:
        return f"{Path(self.source).name}, continued"

    def build(self, vocabulary: int, predictable: int, length: int) -> ContinuedMaskedLM:
        from mptune.models.pretrained import ContinuedMaskedLM, PretrainedMaskedLM

        checkpoint = PretrainedMaskedLM.open(self.source, self.revision, to_train=True)
        return ContinuedMaskedLM(checkpoint, predictable, length)
