"""A mask policy over training: its law, the weight of each count, its cost, and a picture.

Notation as in `mptune.policies.base`: D positions, M = 1..D masked, s progress, q(M | s), omega(M).
Shape suffixes: _SM points of progress x counts, _M counts, _SR points of progress x rate intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mptune.report.layout import Scale, axis_places
from mptune.report.svg import Area, Drawing, Label, Shape, Stroke, png

if TYPE_CHECKING:
    from mptune.models.base import MaskedModel
    from mptune.policies.base import MaskPolicy

FloatArray = NDArray[np.float64]

STEPS = 64
"""Points of progress at which a policy is evaluated."""

ROWS = 10
"""Intervals of the rate in a terminal and in JSON."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A policy on sequences of D positions.

    Attributes:
        words: the policy in words.
        length: D.
        law_SM: q(M | s) at the middles of equal steps of progress, [S, D].
        omega_M: omega(M), the share of S(M) in the expected loss over training, [D].
        mean_rate: masked share of the positions over training.
        lowest, highest: the smallest and the largest M that is ever drawn.
        model: the model that the cost is for, in words.
        flops_per_token: training FLOPs per position with that model, head included.
        flops_to_fixed_15: the same over that of a fixed rate of 15 %.
        learned: whether the law changes with the losses; then the law is the one at the start.
    """

    words: str
    length: int
    law_SM: FloatArray
    omega_M: FloatArray
    mean_rate: float
    lowest: int
    highest: int
    model: str
    flops_per_token: float
    flops_to_fixed_15: float
    learned: bool

    @classmethod
    def of(cls, policy: MaskPolicy, family: MaskedModel, length: int, vocabulary: int) -> Profile:
        """The profile of a policy with a model family, for sequences of D = `length`."""
        family = family.sized(vocabulary, length)
        progress = (np.arange(STEPS) + 0.5) / STEPS
        law_SM = np.array([policy.pmf(length, float(s)) for s in progress])
        drawn = np.flatnonzero(law_SM.any(0)) + 1
        mean_rate = policy.mean_rate(length, STEPS)
        cost, usual = (
            family.flops(vocabulary, length, 1, round(rate * length)) / length
            for rate in (mean_rate, 0.15)
        )
        return cls(
            words=policy.words(),
            length=length,
            law_SM=law_SM,
            omega_M=policy.omega(length, STEPS),
            mean_rate=mean_rate,
            lowest=int(drawn[0]),
            highest=int(drawn[-1]),
            model=f"{family.words()}, vocabulary {vocabulary}",
            flops_per_token=cost,
            flops_to_fixed_15=cost / usual,
            learned=policy.relearn_every is not None,
        )

    def law_by_rate(self, columns: int, rows: int) -> FloatArray:
        """q summed over intervals of the rate, averaged over intervals of progress."""
        rates_M = np.arange(1, self.length + 1) / self.length
        row_M = np.minimum(np.ceil(rates_M * rows - 1e-9).astype(int) - 1, rows - 1)
        law_SR = np.stack([self.law_SM[:, row_M == r].sum(1) for r in range(rows)], axis=1)
        return np.stack([part.mean(0) for part in np.array_split(law_SR, columns)])

    def omega_at(self, rate: float) -> float:
        """omega within 5 points of a rate over its mean: 1 everywhere is accumulated training."""
        rates_M = np.arange(1, self.length + 1) / self.length
        near_M = np.abs(rates_M - rate) <= max(0.05, 0.5 / self.length) + 1e-9
        return float(self.omega_M[near_M].mean() * self.length)

    def as_json(self) -> dict[str, Any]:
        """Plain values: the law by tenths of the rate at 8 points of progress, omega by count."""
        return {
            "policy": self.words,
            "length": self.length,
            "mean_rate": self.mean_rate,
            "support": [self.lowest, self.highest],
            "omega": self.omega_M.tolist(),
            "law_by_tenth_of_rate": self.law_by_rate(8, ROWS).tolist(),
            "model": self.model,
            "flops_per_token": self.flops_per_token,
            "flops_to_fixed_15": self.flops_to_fixed_15,
            "learned": self.learned,
        }

    @property
    def omega_by_rate(self) -> list[float]:
        """Means of omega over equal intervals of the rate."""
        return [float(part.mean()) for part in np.array_split(self.omega_M, ROWS)]

    def drawing(self) -> Drawing:
        """The picture: q over progress as a heat map, omega beside it."""
        progress, rate = Scale(0, 1, 40, 424, False), Scale(0, 100, 230, 30, False)
        weights_M = self.omega_M * self.length
        weight = Scale(0, 1.05 * max(1.0, float(weights_M.max())), 470, 640, False)
        intervals = min(self.length, 50)
        flat = replace(self, law_SM=np.ones_like(self.law_SM))  # 50 may not divide D
        law_SR = self.law_by_rate(STEPS, intervals) / flat.law_by_rate(STEPS, intervals)
        columns = [progress(k / STEPS) for k in range(STEPS + 1)]
        rows = [round(rate(100 * k / intervals)) for k in range(intervals + 1)]
        shapes: list[Shape] = [Label((40, 16), self.words)]
        for (s, r), q in np.ndenumerate(law_SR):
            left, right, low, high = columns[s], columns[s + 1], rows[r], rows[r + 1]
            cell = ((left, low), (right, low), (right, high), (left, high))
            shapes += [Area(cell, "series-1", float(q / law_SR.max()))] if q else []
        for percent in range(0, 101, 20):
            y = rate(percent)
            shapes += [Label((34, y + 4), str(percent), "faint", "end", 12)]
            shapes += [Stroke(((470, y), (640, y)), "line")]
        for share in (0.0, 0.5, 1.0):
            shapes += [Label((progress(share), 247), f"{share:g}", "faint", "middle", 12)]
        for value in axis_places(0, weight.high, 4):
            shapes += [Label((weight(value), 247), f"{value:g}", "faint", "middle", 12)]
        curve = zip(weights_M, np.arange(1, self.length + 1) / self.length, strict=True)
        line = tuple((weight(float(v)), rate(100 * float(r))) for v, r in curve)
        outline = ((40, 30), (424, 30), (424, 230), (40, 230), (40, 30))
        shapes += [
            Stroke(outline, "axis"),
            Stroke(((470, 230), (640, 230)), "axis"),
            Stroke(((weight(1), 30), (weight(1), 230)), "faint", 1.0, (3, 3)),
            Stroke(line, "series-1", 2.0),
            Label((232, 266), "training progress s", "faint", "middle", 12),
            Label((555, 266), "ω(M) over its mean", "faint", "middle", 12),
            Label((470, 16), "mask rate, %", "faint", "start", 12),
        ]
        return Drawing(656, 270, tuple(shapes))

    def png(self) -> bytes:
        """The picture in light colours."""
        return png(self.drawing())
