"""Group-sequential tests: a comparison may stop early, and its error rate still holds.

Notation:

    S_1 < ... < S_K     paired seeds at the looks, fixed before the first one
    t_k = S_k / S_K     share of the information
    alpha t_k           error that looks 1..k may make together (linear spending: Lan & DeMets,
                        Biometrika 70, 1983, with the power family of Kim & DeMets, ibid. 74, 1987)
    c_k                 two-sided normal boundary of look k under independent increments, by
                        recursive integration (Armitage, McPherson & Rowe, JRSS A 132, 1969)
    P(|Z| > c_k)        nominal level of look k; a Student-like p-value is compared with it
                        (Jennison & Turnbull, Group Sequential Methods, 2000, section 4.4)

Scores on the same held-out sequences make looks more alike than independent increments do, so the
error is then smaller. Each look tests the pairs that are not decided yet as one family at its
level; the levels are those of a single statistic, and the family's error is measured
(`benchmarks/comparison.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

GRID = 160
"""Points of the integration over the continuation region; doubling them moves levels by < 1 %."""

GROWTH = 1.5
"""Each look has about this many times the seeds of the one before."""

SMALLEST = 1e-12
"""Smaller overall levels are reported as this one."""


def schedule(first: int, last: int | None) -> tuple[int, ...]:
    """Seeds at each look, from the first to the most that may be spent.

    >>> schedule(3, 12), schedule(3, None)
    ((3, 5, 8, 12), (3,))
    """
    looks = [first]
    while last is not None and looks[-1] < last:
        looks.append(min(last, math.ceil(GROWTH * looks[-1])))
    return tuple(looks)


def nominal_levels(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Two-sided level at which each look may be tested, so that all together err at most `alpha`.

    >>> nominal_levels((5,), 0.05)
    (0.05,)
    """
    return _nominal(tuple(looks), float(alpha))


@lru_cache(maxsize=4096)
def _nominal(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    if not looks or any(a >= b for a, b in pairwise(looks)) or looks[0] < 1:
        raise ValueError(f"looks must be growing numbers of seeds; got {looks}")
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    levels = [alpha * looks[0] / looks[-1]]
    b = -float(ndtri(levels[0] / 2)) * math.sqrt(looks[0])
    # x: the running sum of scores, of variance S; its density where no look has rejected yet.
    x_G = np.linspace(-b, b, GRID)
    density_G = np.exp(-(x_G**2) / (2 * looks[0])) / math.sqrt(2 * math.pi * looks[0])
    for before, now in pairwise(looks):
        spend, sd = alpha * (now - before) / looks[-1], math.sqrt(now - before)
        weights_G = density_G * _simpson(x_G)

        def excess(
            b: float,
            x_G: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = x_G,
            weights_G: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = weights_G,
            sd: float = sd,
            spend: float = spend,
        ) -> float:
            outside = ndtr((x_G - b) / sd) + ndtr((-b - x_G) / sd)
            return float(weights_G @ outside) - spend

        b = float(brentq(excess, 0.0, 45.0 * math.sqrt(now)))
        levels.append(2 * float(ndtr(-b / math.sqrt(now))))
        new_G = np.linspace(-b, b, GRID)
        step_GG = np.exp(-((new_G[:, None] - x_G) ** 2) / (2 * sd**2)) / (
            math.sqrt(2 * math.pi) * sd
        )
        x_G, density_G = new_G, step_GG @ weights_G
    return tuple(levels)


def _simpson(
    x_G: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Weights of the trapezoid rule, corrected at the ends to fourth order."""
    weights_G = np.full(len(x_G), x_G[1] - x_G[0])
    weights_G[[0, -1]] *= 3 / 8
    weights_G[[1, -2]] *= 7 / 6
    weights_G[[2, -3]] *= 23 / 24
    return weights_G


def overall_level(p: float, look: int, looks: Sequence[int]) -> float:
    """The alpha at which look number `look`, from 0, has the nominal level `p`."""
    if len(looks) == 1:
        return p
    from scipy.optimize import brentq

    def excess(log_alpha: float) -> float:
        levels = nominal_levels(looks, math.exp(log_alpha))
        return math.log(levels[look]) - math.log(max(p, 1e-300))

    low, high = math.log(SMALLEST), math.log(0.5)
    if excess(high) < 0:
        return 1.0
    if excess(low) > 0:
        return SMALLEST
    return math.exp(float(brentq(excess, low, high, xtol=1e-4)))
