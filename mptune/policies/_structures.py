"""Which positions are masked together: tokens, spans, whole words or blocks of a grid.

A structure cuts every sequence into units. Whole units are masked in random order until the drawn
count is reached; the last unit is masked in part, so that the count is exact.

Shape suffixes: _B sequences, _BD sequences x positions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from mptune.errors import did_you_mean
from mptune.spec.schema import Section

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
Units: TypeAlias = IntArray | None
"""The unit of every position [B, D], or None."""


class Structure(Section):
    """Cuts sequences into units that are masked together."""

    kind: str

    @abstractmethod
    def units(self, shape: tuple[int, int], rng: Generator, words_BD: Units) -> Units:
        """The unit of every position, numbers in 0..D-1.

        Args:
            shape: (B, D).
            rng: source of all randomness.
            words_BD: the word of every position, or None where the data has no words.

        Returns:
            int64 [B, D], or None where every position is a unit.

        Raises:
            ValueError: the sequences do not fit the structure.
        """

    @abstractmethod
    def words(self) -> str:
        """The structure as text for labels; empty for single tokens."""


class Token(Structure):
    """Single positions."""

    kind: Literal["token"] = "token"

    def units(self, shape: tuple[int, int], rng: Generator, words_BD: Units) -> Units:
        return None

    def words(self) -> str:
        return ""


class Span(Structure):
    """Runs of geometric length, cut at `longest`: l ~ Geo(p), mean 3.8 at the defaults.

    Source: SpanBERT (Joshi et al. 2020, arXiv 1907.10529, section 3.1).
    """

    kind: Literal["span"] = "span"
    p: float = Field(0.2, gt=0, le=1, description="of the geometric length, in (0, 1]")
    longest: int = Field(10, ge=1, description="positions of the longest span")

    def units(self, shape: tuple[int, int], rng: Generator, words_BD: Units) -> Units:
        batch, length = shape
        # The row is a random window on a longer run of spans: starts are equally likely anywhere.
        before = 4 * self.longest
        lengths_BD = np.minimum(rng.geometric(self.p, (batch, length + before)), self.longest)
        ends_BD = np.cumsum(lengths_BD, axis=1) - rng.integers(before, size=(batch, 1))
        starts_BD = np.zeros((batch, length + 1), np.int64)
        starts_BD[np.arange(batch)[:, None], np.clip(ends_BD, 0, length)] = 1
        starts_BD[:, 0] = 0
        return np.cumsum(starts_BD[:, :-1], axis=1)

    def words(self) -> str:
        return f"spans to {self.longest}"


class WholeWord(Structure):
    """All tokens of a word.

    Source: BERT's whole-word models (Devlin et al. 2019, https://github.com/google-research/bert).
    """

    kind: Literal["whole_word"] = "whole_word"

    def units(self, shape: tuple[int, int], rng: Generator, words_BD: Units) -> Units:
        if words_BD is None:
            raise ValueError("structure whole_word needs words, which the data does not have")
        return words_BD

    def words(self) -> str:
        return "whole words"


class Block(Structure):
    """Rectangles of a grid that is written row by row: image patches, or channel x time.

    Source: MAE (He et al. 2022, arXiv 2111.06377); blocks in place as in BEiT, arXiv 2106.08254.
    """

    kind: Literal["block"] = "block"
    columns: int = Field(gt=0, description="columns of the grid; D is a multiple of it")
    height: int = Field(4, gt=0, description="rows of a block")
    width: int = Field(4, gt=0, description="columns of a block")

    def units(self, shape: tuple[int, int], rng: Generator, words_BD: Units) -> Units:
        if shape[1] % self.columns:
            raise ValueError(
                f"structure block: {shape[1]} positions are not whole rows of {self.columns} "
                "columns; give a divisor"
            )
        row_D, column_D = np.divmod(np.arange(shape[1]), self.columns)
        across = -(-self.columns // self.width)
        unit_D = row_D // self.height * across + column_D // self.width
        return np.broadcast_to(unit_D, shape)

    def words(self) -> str:
        return f"blocks {self.height}×{self.width}"


KINDS: dict[str, type[Structure]] = {
    "token": Token,
    "span": Span,
    "whole_word": WholeWord,
    "block": Block,
}


def _read(value: object) -> Structure:
    """A structure from a spec: its name, or a mapping with its parameters."""
    if isinstance(value, Structure):
        return value
    given: dict[str, Any] = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = given.get("kind")
    if kind not in KINDS:
        raise ValueError(
            f"is not a structure; one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    return KINDS[str(kind)].model_validate(given)


_Parameters = Token | Span | WholeWord | Block
AnyStructure = Annotated[
    _Parameters,
    BeforeValidator(
        _read,
        json_schema_input_type=Literal["token", "span", "whole_word"] | _Parameters,
    ),
]
"""A structure field: a name or a mapping with parameters in the spec."""


def choose_units(
    observed_BD: BoolArray, counts_B: IntArray, units_BD: IntArray | None, rng: Generator
) -> BoolArray:
    """Masks of exactly the given counts: whole units, of which the last in a row may be cut.

    Raises:
        ValueError: a sequence has fewer observed positions than its count.
    """
    if (counts_B > observed_BD.sum(1)).any():
        raise ValueError("a mask count exceeds the sequence's observed positions")
    keys_BD = rng.random(observed_BD.shape)
    if units_BD is None:
        order_BD = np.argsort(np.where(observed_BD, keys_BD, 2.0), axis=1)
    else:
        order_BD = _by_unit(np.take_along_axis(keys_BD, units_BD, axis=1), observed_BD, rng)
    mask_BD = np.zeros(observed_BD.shape, bool)
    chosen_BD = np.arange(observed_BD.shape[1]) < counts_B[:, None]
    np.put_along_axis(mask_BD, order_BD, chosen_BD, axis=1)
    return mask_BD


def _by_unit(keys_BD: NDArray[np.float64], observed_BD: BoolArray, rng: Generator) -> IntArray:
    """Positions in the order of their units' keys, so that a unit's positions are adjacent.

    In half of the rows a unit's positions run from right to left, so that neither end is cut more
    often.
    """
    side_B1 = rng.choice([-1, 1], size=(len(keys_BD), 1))
    place_BD = side_B1 * np.arange(keys_BD.shape[1])
    return np.lexsort((place_BD, np.where(observed_BD, keys_BD, 2.0)), axis=1)


def words_of(tokens_BD: NDArray[Any], joins_V: NDArray[np.bool_]) -> IntArray:
    """The word of every position, numbered from 0 in each sequence.

    Args:
        tokens_BD: ids.
        joins_V: bool [2, ids]; a token belongs to its left neighbour's word if `joins_V[0]` holds
            for it and `joins_V[1]` for the neighbour.
    """
    continues_BD = joins_V[0][tokens_BD[:, 1:]] & joins_V[1][tokens_BD[:, :-1]]
    words_BD = np.zeros(tokens_BD.shape, np.int64)
    np.cumsum(~continues_BD, axis=1, out=words_BD[:, 1:])
    return words_BD
