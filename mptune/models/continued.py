"""A masked language model that is trained already, and goes on with other data.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from mptune.models.base import MaskedModel

if TYPE_CHECKING:
    from mptune.models.pretrained import ContinuedMaskedLM


class ContinuedModel(MaskedModel):
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

    @property
    def width(self) -> None:
        """Not known."""

    def words(self) -> str:
        return f"{Path(self.source).name}, continued"

    def build(self, vocabulary: int, predictable: int, length: int) -> ContinuedMaskedLM:
        from mptune.models.pretrained import ContinuedMaskedLM, PretrainedMaskedLM

        checkpoint = PretrainedMaskedLM.open(self.source, self.revision, to_train=True)
        return ContinuedMaskedLM(checkpoint, predictable, length)

    def parameters(self, vocabulary: int, length: int) -> int:
        return _counted(self.model_dump_json(), vocabulary, length)[0]

    def flops(self, vocabulary: int, length: int, batch: int, masked: int) -> float:
        _, of_sequence, of_masked = _counted(self.model_dump_json(), vocabulary, length)
        return batch * of_sequence + masked * of_masked


@cache
def _counted(section: str, vocabulary: int, length: int) -> tuple[int, float, float]:
    """Parameters; FLOPs of a step per sequence, and per masked position."""
    from mptune.models._own import counted

    model = ContinuedModel.model_validate_json(section)

    def build() -> Any:
        return model.build(vocabulary, vocabulary - 2, length)

    return counted(build, length)
