"""The base of models: what is asked of all, and the sizes of families that mptune builds.

Shape suffixes: B sequences of a batch, D positions, K masked positions of the whole batch in
row-major order, V predictable symbols.

Family modules are read by commands that never load torch, so torch and transformers are imported
inside functions only.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from mptune.spec.schema import SIZE_SUFFIXES, Plugin, Size

if TYPE_CHECKING:
    from torch import nn

WIDTH_PER_HEAD, WIDE, WIDE_STEP = 32, 512, 128
"""Default width of an attention head: small models train better with a few heads than with one.
From `WIDE` channels on it is twice that, as BERT's, for which attention kernels are made."""

ASPECT = 64
"""Width per block of a model that is sized by its parameters, as BERT-base's 768 / 12."""

MOST_BLOCKS = 96

LONGEST_PLAIN = 512
"""Positions up to which attention on a CPU keeps its scores in half precision, see `_masked`."""

IMPOSSIBLE = -1e4
"""Bias of a symbol that cannot be predicted: its probability is 0 in every precision."""

BACKWARD = 2
"""A backward pass multiplies every matrix twice: for the inputs' gradients and for the weights'."""

VALUES_WITHOUT_GRADIENTS = 12
"""Values per channel of the one block that a forward without gradients is in; its MLP is four times
as wide."""


class MaskedModel(Plugin):
    """Base of all models: a masked language model that is trained from scratch."""

    family: str

    if TYPE_CHECKING:

        @property
        def width(self) -> int | None:
            """Channels of the residual stream; None if they are not known."""

    @abstractmethod
    def words(self) -> str:
        """Family and size in words, e.g. `bert 64×2` or `bert 110M`."""

    def sized(self, vocabulary: int, length: int) -> Self:
        """The model with its size decided; see `ModelFamily.sized`."""
        return self

    @abstractmethod
    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        """The module, randomly initialised from torch's global generator.

        Its `forward(tokens_BD, mask, attend_BD=None, *others)` gives `logits_KV` at the masked
        positions only, over symbols 0..`predictable`-1: [MASK] and [PAD] cannot be predicted.
        `mask` is bool [B, D], or the flat indices [K] of the masked positions, of which some may be
        repeated. `vocabulary` counts the ids that can be an input, `length` the positions of a
        sequence. Where `attend_BD` is False (padding) nothing is attended to. The others are those
        of `MaskedPredictor.forward`; without `training.pack` they may be ignored.
        `save_pretrained(folder)` is called with `training.keep_weights`.
        `mptune.models._conformance` checks a module.
        """

    def lay_out(self, module: nn.Module, axes: Sequence[int], sizes: Sequence[int]) -> None:
        """Give a built module the grid its positions lie on, and the symbols each can have.

        A module without `lay_out` takes positions as a line and may predict every symbol.
        """
        method: Any = getattr(module, "lay_out", None)
        if method is not None and (axes or sizes):
            method(axes, sizes)

    @abstractmethod
    def parameters(self, vocabulary: int, length: int) -> int:
        """How many parameters the module has."""

    def trained(self, vocabulary: int, length: int) -> int:
        """How many of the parameters are trained: here all.

        The others take memory, but have neither gradients nor a state of the optimizer.
        """
        return self.parameters(vocabulary, length)

    @abstractmethod
    def flops(self, vocabulary: int, length: int, batch: int, masked: int) -> float:
        """FLOPs of one training step on `batch` sequences of which `masked` positions are masked.

        Matrix products of forward and backward pass only: normalisation, activations, biases,
        look-ups and the optimizer are left out, as is usual. A weight that is not trained has none
        for its gradient.
        """

    def forward_share(self, vocabulary: int, length: int) -> float:
        """Share of these FLOPs that the forward pass has: here a third, as all weights train."""
        return 1 / (1 + BACKWARD)

    def block_bytes(
        self, device: str, half: bool, length: int, recomputed: bool
    ) -> tuple[float, float]:
        """Bytes per position that blocks keep for the backward pass, and that scoring needs.

        Here 0: not known.
        """
        return 0.0, 0.0


class ModelFamily(MaskedModel):
    """Base of families with a width and blocks: an encoder with a head on masked positions."""

    EXAMPLES = ({"width": 32, "depth": 1}, {"width": 32, "depth": 2})
    size: Size | None = Field(
        None,
        ge=1e3,
        le=1e12,
        description="parameters, e.g. 110M, embeddings included, instead of width, depth and heads",
    )
    width: int = Field(64, gt=0, le=2**20, description="channels of the residual stream")
    depth: int = Field(2, gt=0, le=10_000, description="transformer blocks")
    heads: int | None = Field(
        None,
        gt=0,
        description="attention heads, a divisor of width; default about width / 32, "
        "from a width of 512 on width / 64",
    )
    mlp_ratio: float = Field(4.0, gt=0, description="MLP width as a multiple of width")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the blocks")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # Values at their defaults may have been filled in by a resolved spec.
        both = [
            name
            for name in ("width", "depth", "heads")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.size is not None and both:
            raise ValueError(f"has size and {', '.join(both)}; give size, or width and depth")
        if self.width % self.attention_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; "
                f"e.g. heads: {_default_heads(self.width)}"
            )
        return self

    @property
    def attention_heads(self) -> int:
        """`heads`, or the most that divide the width and are at least 32, or 64, channels wide."""
        return self.heads or _default_heads(self.width)

    @property
    def mlp_width(self) -> int:
        """Hidden units of a block's MLP."""
        return max(1, round(self.mlp_ratio * self.width))

    @property
    def kept_per_channel(self) -> float:
        """Values that a block keeps for its backward pass, per position and channel.

        Korthikanti et al. (2022, arXiv 2205.05198, section 4.1) count 17 where the MLP is four
        times as wide; of those its two matrices have two for each unit.
        """
        return 9 + 2 * self.mlp_ratio

    def block_bytes(
        self, device: str, half: bool, length: int, recomputed: bool
    ) -> tuple[float, float]:
        value = 2 if half else 4
        # Plain attention keeps its scores for the backward pass; they grow as the square.
        plain = device == "cpu" and half and length <= LONGEST_PLAIN
        scores = 2 * self.attention_heads * length * value if plain else 0
        block = self.kept_per_channel * self.width * value + scores
        # Recomputed, blocks keep their input; only the last and the one being computed keep all.
        kept = self.depth * self.width * value + 2 * block if recomputed else self.depth * block
        return kept, VALUES_WITHOUT_GRADIENTS * self.width * value + scores

    def words(self) -> str:
        if self.size is not None:
            return f"{self.family} {_size_words(self.size)}"
        return f"{self.family} {self.width}×{self.depth}"

    def sized(self, vocabulary: int, length: int) -> Self:
        """The member with about `size` parameters, by width and depth; itself if these are given.

        For each depth, the width (a multiple of 32, from 512 on of 128) whose parameters come
        nearest; of those members, the best compromise between that distance and a width of 64 per
        block.

        Raises:
            ValueError: no member is within a tenth of the size; names the nearest.
        """
        if self.size is None:
            return self
        size = self.size

        def parameters(member: ModelFamily) -> int:
            return member.parameters(vocabulary, length)

        members = []
        for depth in range(1, MOST_BLOCKS + 1):
            low, high = 1, 1024  # parameters grow with the width, so halving finds it
            while low < high:
                middle = (low + high) // 2
                if parameters(self._member(middle, depth)) < size:
                    low = middle + 1
                else:
                    high = middle
            pair = [self._member(max(1, low - 1), depth), self._member(low, depth)]
            members.append(min(pair, key=lambda m: abs(parameters(m) - size)))
        best = min(
            members,
            key=lambda m: (
                abs(math.log(m.width / m.depth / ASPECT)) + 20 * abs(math.log(parameters(m) / size))
            ),
        )
        found = parameters(best)
        if abs(found / size - 1) > 0.1:
            raise ValueError(
                f"size {_size_words(size)}: the nearest {self.family} with "
                f"{vocabulary} symbols is {best.words()} with {_size_words(found)} parameters"
            )
        return best

    def _member(self, units: int, depth: int) -> Self:
        width = units * WIDTH_PER_HEAD
        if width >= WIDE:  # tensor cores work in tiles of 128
            width = WIDE_STEP * -(-width // WIDE_STEP)
        return self.model_copy(update={"size": None, "width": width, "depth": depth})

    def parameters(self, vocabulary: int, length: int) -> int:
        """How many parameters the module has, in closed form.

        Here those of BERT: learned positions, one segment, a norm, the blocks and the head.
        """
        embeddings = (vocabulary + length + 1) * self.width + 2 * self.width
        blocks = self.depth * self.classic_block_parameters()
        return embeddings + blocks + self.classic_head_parameters(vocabulary)

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

    def after_attention_multiplications(self) -> float:
        """Those of them that follow attention and mix no positions: a projection and the MLP."""
        return self.width**2 + 2 * self.width * self.mlp_width

    def head_multiplications(self, vocabulary: int) -> float:
        """Multiply-adds of the head per masked position: one dense layer, then the decoder.

        Of the `vocabulary` ids [MASK] and [PAD] are not decoded.
        """
        return self.width**2 + self.width * (vocabulary - 2)

    def flops(self, vocabulary: int, length: int, batch: int, masked: int) -> float:
        """See `MaskedModel.flops`:

            3 · 2 · (batch · length · (depth · block - after) + masked · (after + head))

        `after` is what the last block does after attention, of masked positions only; 3 is forward
        and backward, 2 is multiply and add.
        """
        after = self.after_attention_multiplications()
        blocks = batch * length * (self.depth * self.block_multiplications(length) - after)
        chosen = masked * (after + self.head_multiplications(vocabulary))
        return (1 + BACKWARD) * 2.0 * (blocks + chosen)


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


def _size_words(parameters: float) -> str:
    suffix = next(s for s in ("B", "M", "K", "") if parameters >= SIZE_SUFFIXES[s])
    return f"{parameters / SIZE_SUFFIXES[suffix]:.4g}{suffix}"


def _default_heads(width: int) -> int:
    most = max(1, width // (WIDTH_PER_HEAD if width < WIDE else 2 * WIDTH_PER_HEAD))
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)
