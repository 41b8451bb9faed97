"""Columns of values to symbols: quantile bins with their widths, single values, categories.

A real value x falls in bin b of width w, and a model gives log p(b). Its log density is

    log p(b) - log w                         inside the range of the training values
    log p(b) - (log w + d/w - log e)         a distance d beyond it, with e = 1/(n + 1)

where n training values fall in that outermost bin: the next value lies beyond the largest of n
with probability 1/(n + 1), and there the density falls exponentially at the scale of the bin. So
the density integrates to 1 over all reals. A value that is more frequent in training than a bin
would be is a symbol of its own: an atom, with a probability instead of a density.

Both kinds of columns have the same methods:
    size           symbols, 0..size-1
    symbols        the symbol of each value; -1 where it is missing or has no symbol
    log_widths     what is subtracted from log p of each value's symbol, in nats; 0 where missing
    as_json        everything; `column` is the inverse
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OTHER = "(other)"
"""The category of all rare ones together."""


def is_known(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a column of numbers [N] is not NaN, or one of categories [N] is not None."""
    if values.dtype == object:
        return np.array([value is not None for value in values.tolist()], bool)
    return ~np.isnan(values)


def column(stored: dict[str, Any]) -> Bins | Categories:
    """The column that `as_json` describes."""
    if stored["kind"] == "categories":
        return Categories(tuple(stored["names"]), stored["pooled"])
    values: dict[str, Any] = {
        k: np.array(v, float) if isinstance(v, list) else v for k, v in stored.items()
    }
    del values["kind"]
    return Bins(**values)


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins between `edges` [K+1], then one symbol for each of `atoms` [A].

    Attributes:
        edges: ascending; empty if the column has atoms only.
        counts: training values in each bin [K].
        atoms: ascending values with a symbol of their own.
        medians: of the training values in each bin [K].
        mean, scale: of the training values.
        standardised: densities count in units of `scale`, else in the column's own.
    """

    edges: FloatArray
    counts: FloatArray
    atoms: FloatArray
    medians: FloatArray
    mean: float = 0.0
    scale: float = 1.0
    standardised: bool = False
    kind: ClassVar[str] = "bins"

    @classmethod
    def fit(cls, values: FloatArray, bins: int, standardised: bool = False) -> Bins:
        """Bins for at least one training value [n], all finite; about equally many in each."""
        distinct, counts = np.unique(values, return_counts=True)
        few = len(distinct) <= bins and len(values) >= 2 * len(distinct)
        heavy = few | (counts > max(1, len(values) / bins))
        rest = values[~np.isin(values, distinct[heavy])]
        if len(np.unique(rest)) < 2:
            heavy = heavy | np.isin(distinct, rest)
            rest = rest[:0]
        atoms = distinct[heavy]
        wanted = max(1, bins - len(atoms))
        edges = np.unique(np.quantile(rest, np.linspace(0, 1, wanted + 1))) if len(rest) else rest
        found = np.histogram(rest, edges)[0].astype(np.float64) if len(rest) else rest
        spread = float(values.std()) or 1.0
        medians = _medians(rest, edges) if len(rest) else rest
        return cls(edges, found, atoms, medians, float(values.mean()), spread, standardised)

    @property
    def intervals(self) -> int:
        """K, the symbols that are bins."""
        return max(0, len(self.edges) - 1)

    @property
    def size(self) -> int:
        return self.intervals + len(self.atoms)

    def symbols(self, values: NDArray[Any]) -> IntArray:
        values = np.asarray(values, np.float64)
        found = np.full(values.shape, -1, np.int64)
        if self.intervals:
            found = np.searchsorted(self.edges[1:-1], values, side="right").astype(np.int64)
        atom, here = self._atoms(values)
        found = np.where(here, self.intervals + atom, found)
        return np.where(np.isnan(values), -1, found)

    def log_widths(self, values: NDArray[Any]) -> FloatArray:
        values = np.asarray(values, np.float64)
        smooth = ~np.isnan(values) & ~self._atoms(values)[1]
        found = np.zeros(values.shape)
        if self.intervals:
            found[smooth] = self._log_width(values[smooth])
        return found

    def _log_width(self, values: FloatArray) -> FloatArray:
        bin_ = np.searchsorted(self.edges[1:-1], values, side="right")
        width, beyond = np.diff(self.edges)[bin_], 1 / (self.counts[bin_] + 1)
        distance = np.maximum(np.maximum(self.edges[0] - values, values - self.edges[-1]), 0)
        # Only the two outermost bins give some of their probability to values beyond the range.
        outer = (bin_ == 0) * 1 + (bin_ == self.intervals - 1)
        beyond = beyond / np.maximum(outer, 1)
        inside = np.log(width) - np.log1p(-outer * beyond)
        outside = np.log(width) + distance / width - np.log(beyond)
        unit = np.log(self.scale) if self.standardised else 0.0
        return np.where(distance > 0, outside, inside) - unit

    def _atoms(self, values: FloatArray) -> tuple[IntArray, NDArray[np.bool_]]:
        """(index of the nearest atom from below, whether it is the value)."""
        if not len(self.atoms):
            return np.zeros(values.shape, np.int64), np.zeros(values.shape, bool)
        index = np.clip(np.searchsorted(self.atoms, values), 0, len(self.atoms) - 1)
        return index, self.atoms[index] == values

    def centres(self) -> FloatArray:
        """A value for each symbol [size]: the median of its bin's training values, or the atom.

        The middle of an outermost bin would depend on a single outlier.
        """
        return np.concatenate([self.medians, self.atoms])

    def quantile(self, probability_V: FloatArray, level: float) -> float:
        """The value below which the share `level` of the distribution over symbols lies."""
        low, width, share = self._pieces(probability_V[: self.size])
        return _mixture_quantile(low, width, share, level)

    def level_of(self, probability_V: FloatArray, value: float) -> float:
        """The smallest level of a central interval, from `quantile` to `quantile`, with the value.

        0 if it is the median: an interval holds an atom as a whole.
        """
        (below,), (up_to,) = _cdf(*self._pieces(probability_V[: self.size]), np.array([value]))
        return float(2 * max(below - 0.5, 0.5 - up_to, 0.0))

    def crps(self, probability_V: FloatArray, value: float) -> float:
        """Continuous ranked probability score of the distribution, in the unit of the values.

        The integral of (F(x) - [x >= value])² (Gneiting and Raftery 2007, doi
        10.1198/016214506000001437): of a single value, its distance.
        """
        low, width, share = self._pieces(probability_V[: self.size])
        points = np.unique(np.concatenate([low, low + width, [value]]))
        below, up_to = _cdf(low, width, share, points)
        is_above = points[:-1] >= value
        start, end = up_to[:-1] - is_above, below[1:] - is_above  # linear in between
        return float(np.diff(points) @ (start**2 + start * end + end**2) / 3)

    def draw(self, symbols: IntArray, rng: np.random.Generator) -> FloatArray:
        """A value for each symbol: uniform below or above its bin's median, or the atom."""
        below = rng.random(symbols.shape) < 0.5
        start = np.concatenate([self.edges[:-1], self.atoms])[symbols]
        end = np.concatenate([self.edges[1:], self.atoms])[symbols]
        middle = self.centres()[symbols]
        left, right = np.where(below, start, middle), np.where(below, middle, end)
        return left + (right - left) * rng.random(symbols.shape)

    def _pieces(self, probability_V: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(start, width, probability) of uniform pieces: both halves of each bin, and atoms."""
        half_K = probability_V[: self.intervals] / 2
        low = np.concatenate([self.edges[:-1], self.medians, self.atoms])
        high = np.concatenate([self.medians, self.edges[1:], self.atoms])
        share = np.concatenate([half_K, half_K, probability_V[self.intervals :]])
        return low, high - low, share

    def as_json(self) -> dict[str, Any]:
        values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {"kind": self.kind, **values}


def _medians(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Median of the values in each bin; the middle of a bin without any."""
    bin_ = np.searchsorted(edges[1:-1], values, side="right")
    inside = [values[bin_ == k] for k in range(len(edges) - 1)]
    middle = (edges[1:] + edges[:-1]) / 2
    return np.array([np.median(v) if len(v) else m for v, m in zip(inside, middle, strict=True)])


def _mixture_quantile(
    low: FloatArray, width: FloatArray, probability: FloatArray, level: float
) -> float:
    """Quantile of a mixture of uniforms on [low, low + width], and of points where width is 0."""
    points = np.unique(np.concatenate([low, low + width]))
    before, after = _cdf(low, width, probability, points)
    i = int(np.argmax(after >= level - 1e-12))
    if i == 0 or before[i] < level:
        return float(points[i])
    share = (level - after[i - 1]) / (before[i] - after[i - 1])
    return float(points[i - 1] + share * (points[i] - points[i - 1]))


def _cdf(
    low: FloatArray, width: FloatArray, probability: FloatArray, points: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Probability below each point, and up to it, of such a mixture."""
    p, at = probability / probability.sum(), points[:, None]
    inside = np.clip((at - low) / np.where(width > 0, width, 1.0), 0, 1) * (width > 0)
    is_point = width == 0
    return (inside + (is_point & (low < at))) @ p, (inside + (is_point & (low <= at))) @ p


@dataclass(frozen=True)
class Categories:
    """Named categories, one symbol each; `pooled`: the last one is that of all rare ones."""

    names: tuple[str, ...]
    pooled: bool
    number: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    kind: ClassVar[str] = "categories"

    def __post_init__(self) -> None:
        self.number.update({name: i for i, name in enumerate(self.names)})

    @classmethod
    def fit(cls, values: NDArray[Any], rare: int) -> Categories:
        """Categories of training values; those with fewer than `rare` values are pooled."""
        counts = Counter(v for v in values.tolist() if v is not None)
        names = sorted(name for name, n in counts.items() if n >= rare)
        pooled = len(names) < len(counts)
        return cls(tuple([*names, OTHER] if pooled else names), pooled)

    @property
    def size(self) -> int:
        return len(self.names)

    def symbols(self, values: NDArray[Any]) -> IntArray:
        unknown = self.size - 1 if self.pooled else -1
        found = [-1 if v is None else self.number.get(v, unknown) for v in values.ravel().tolist()]
        return np.array(found, np.int64).reshape(values.shape)

    def log_widths(self, values: NDArray[Any]) -> FloatArray:
        return np.zeros(values.shape)

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names), "pooled": self.pooled}
