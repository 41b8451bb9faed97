"""A model class that mptune does not know: the user's own, or any of transformers.

torch and transformers are imported inside functions only, see `base`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, field_validator

from mptune.models.base import MaskedModel
from mptune.plugins import require_package
from mptune.spec.schema import REFERENCE

if TYPE_CHECKING:
    from torch import nn


class CountedModel(MaskedModel):
    """Base of models of which torch counts parameters and FLOPs; their width is not known."""

    @property
    def width(self) -> None:
        """Not known."""

    def parameters(self, vocabulary: int, length: int) -> int:
        return _counted(type(self), self.model_dump_json(), vocabulary, length)[0]

    def trained(self, vocabulary: int, length: int) -> int:
        return _counted(type(self), self.model_dump_json(), vocabulary, length)[1]

    def flops(self, vocabulary: int, length: int, batch: int, masked: int) -> float:
        counts = _counted(type(self), self.model_dump_json(), vocabulary, length)
        return batch * counts[2] + masked * counts[3]

    def forward_share(self, vocabulary: int, length: int) -> float:
        return _counted(type(self), self.model_dump_json(), vocabulary, length)[4]


@cache
def _counted(
    kind: type[CountedModel], section: str, vocabulary: int, length: int
) -> tuple[int, int, float, float, float]:
    """See `mptune.models._own.counted`."""
    from mptune.models._own import counted

    model = kind.model_validate_json(section)
    return counted(lambda: model.build(vocabulary, vocabulary - 2, length), length)


class OwnModel(CountedModel):
    """A class of your own: `class: package.module:Class`; all other keys are its arguments.

    They are keyword arguments of the class, or of its `config_class` if it has one, as models of
    transformers do. docs/plugins.md says what the class must do, and `mptune check` checks it.
    """

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)
    family: Literal["class"] = "class"
    reference: str = Field(
        alias="class",
        pattern=REFERENCE,
        description="package.module:Class of a masked language model; other keys are its arguments",
    )

    @field_validator("reference")
    @classmethod
    def _is_there(cls, reference: str) -> str:
        require_package(reference)
        return reference

    def words(self) -> str:
        given = [f"{key}={value}" for key, value in (self.model_extra or {}).items()]
        return " ".join([self.reference.partition(":")[2], *given])

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        from mptune.models._own import OwnMaskedLM, constructed

        given = self.model_extra or {}
        return OwnMaskedLM(constructed(self.reference, given, vocabulary, length), predictable)
