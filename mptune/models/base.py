"""What a model family is: the sizes that are searched, the module they give, and what it costs.

Shape suffixes: B sequences of a batch, D positions, K masked positions of the whole batch in
row-major order, V predictable symbols.

Family modules are read by commands that never load torch, so torch and transformers are imported
inside functions only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from mptune.spec import Section

if TYPE_CHECKING:
    from torch import nn

WIDTH_PER_HEAD = 32
"""Default width of an attention head; small models train better with a few heads than with one."""

BACKWARD = 2
"""A backward pass multiplies every matrix twice: for the inputs' gradients and for the weights'."""


class ModelFamily(Section):
    """Base of all families: an encoder with a masked-language-model head, trained from scratch."""

    family: str
    width: int = Field(64, gt=0, description="channels of the residual stream")
    depth: int = Field(2, gt=0, description="transformer blocks")
    heads: int | None = Field(
        None, gt=0, description="attention heads, a divisor of width; default about width / 32"
    )
    mlp_ratio: float = Field(4.0, gt=0, description="MLP width as a multiple of width")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the blocks")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.attention_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; "
                f"e.g. heads: {_default_heads(self.width)}"
            )
        return self

    @property
    def attention_heads(self) -> int:
        """`heads`, or its default: the most that divide the width and are 32 channels wide."""
        return self.heads or _default_heads(self.width)

    @property
    def mlp_width(self) -> int:
        """Hidden units of a block's MLP."""
        return max(1, round(self.mlp_ratio * self.width))

    def words(self) -> str:
        """Family and size in words, e.g. `bert 64×2`."""
        return f"{self.family} {self.width}×{self.depth}"

    @classmethod
    def examples(cls) -> list[Self]:
        """Small members that the conformance tests build."""
        return [
            cls(family=cls.__module__.rpartition(".")[2], width=32, depth=depth) for depth in (1, 2)
        ]

    @abstractmethod
    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        """The module, randomly initialised from torch's global generator.

        Its `forward(tokens_BD, mask_BD, attend_BD=None)` gives `logits_KV` at the masked positions
        only, over symbols 0..`predictable`-1: [MASK] and [PAD] cannot be predicted. `vocabulary`
        counts the ids that can be an input, `length` the positions of a sequence. Where `attend_BD`
        is False (padding) nothing is attended to.
        """

    def lay_out(self, module: nn.Module, axes: Sequence[int], sizes: Sequence[int]) -> None:
        """Tell a built module the grid its positions lie on, and which symbols each can have.

        A module without `lay_out` takes positions as a line and may predict every symbol.
        """
        told: Any = getattr(module, "lay_out", None)
        if told is not None and (axes or sizes):
            told(axes, sizes)

    @abstractmethod
    def parameters(self, vocabulary: int, length: int) -> int:
        """How many parameters the module has, in closed form."""

    def classic_block_parameters(self) -> int:
        """A block of four projections and a two-layer MLP, all with biases, and two norms."""
        width, hidden = self.width, self.mlp_width
        return 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width

    def classic_head_parameters(self, vocabulary: int) -> int:
        """A dense layer, a norm, and a decoder that shares the embeddings and adds a bias."""
        return self.width * (self.width + 1) + 2 * self.width + vocabulary

    def block_multiplications(self, length: int) -> float:
        """Multiply-adds of one block per position: four projections, scores and values, MLP."""
        projections = 4 * self.width**2 + 2 * self.width * self.mlp_width
        return projections + 2 * length * self.width

    def head_multiplications(self, vocabulary: int) -> float:
        """Multiply-adds of the head per masked position: one dense layer, then the decoder."""
        return self.width**2 + self.width * vocabulary

    def flops(self, vocabulary: int, length: int, batch: int, masked: int) -> float:
        """FLOPs of one training step on `batch` sequences of which `masked` positions are masked.

            3 · 2 · (batch · length · depth · block + masked · head)

        3 is forward and backward, 2 is multiply and add. Matrix products only: normalisation,
        activations, biases, look-ups and the optimizer are left out, as is usual.
        """
        blocks = batch * length * self.depth * self.block_multiplications(length)
        head = masked * self.head_multiplications(vocabulary)
        return (1 + BACKWARD) * 2.0 * (blocks + head)


class RotaryFamily(ModelFamily):
    """Base of families that turn pairs of channels by their position."""

    @model_validator(mode="after")
    def _heads_can_rotate(self) -> Self:
        each = self.width // self.attention_heads
        if each % 2:
            raise ValueError(
                f"rotary positions need an even width per head; width {self.width} over "
                f"{self.attention_heads} heads is {each}"
            )
        return self


def _default_heads(width: int) -> int:
    most = max(1, width // WIDTH_PER_HEAD)
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)
