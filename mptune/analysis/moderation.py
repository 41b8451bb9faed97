"""Moderated variances: what arms with few training seeds learn about their noise from each other.

The model of Smyth (2004, doi 10.2202/1544-6115.1027) with a trend:

    s²_i  ~ sigma²_i chi²(d_i) / d_i                  sample variance over the seeds of arm i
    1 / sigma²_i ~ chi²(d0) / (d0 s0²_i)              how the arms differ
    log s0²_i = a + b x_i                             x_i: share of mask counts out of play late

Smyth plugs in estimates of d0 and s0². With a handful of arms these are as uncertain as the
variances that they are to improve, so here a, b and d0 are integrated over on a grid. A policy
that leaves mask counts out at the end of training varies more from seed to seed: in a search of
32 policies by a factor of 60 in variance, which the prior of b allows for.

Where an arm may be unlike the others, an outlier test decides (Phipson et al. 2016, doi
10.1214/16-AOAS920): if their variances predict one as large as its own with a probability below a
level, its variance is known from its own runs alone, as in Student's t.

Shape suffixes: A arms; G grid points of (b, d0, a).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mptune.analysis.crossed import Array
from mptune.errors import InputError
from mptune.spec.schema import build

SEED_SHARE = math.sqrt(0.5)
"""Differences that do not matter, in standard deviations of one training seed: half a standard
deviation of the difference between two seeds."""

PRIOR_DEGREES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
"""Grid of d0, equally probable: from arms that differ 20-fold and more to arms that are alike."""

SLOPES = np.arange(-3.0, 7.1, 1.0)
"""Grid of b, log variance ratio of a policy with no count in play late to one with all of them."""

SLOPE_PRIOR = np.exp(-0.5 * ((SLOPES - 2.0) / 2.0) ** 2)
"""Of each slope: 0 and 60-fold are one standard deviation away."""

LOG_SCALES = np.arange(-9.0, 4.1, 0.25)
"""Grid of a, relative to the log of the pooled variance, equally probable."""

LATE, IN_PLAY = 0.2, 0.1
"""The last part of training, and the least probability of a count that is in play, relative to
uniform counts."""

MOST_COUNTS = 512
"""Most mask counts at which a policy's late support is computed: a share needs no more."""


@dataclass(frozen=True, eq=False)
class Moderated:
    """Variances of arms over training seeds, in the unit of the sample variances.

    Attributes:
        variance_A: of each arm: the inverse of its mean 1 / sigma² given all arms.
        weight_G: of each point of the grid.
        df_GA, squares_GA: there, 1 / sigma² is distributed as chi²(df) / squares.
    """

    variance_A: Array
    weight_G: Array
    df_GA: Array
    squares_GA: Array

    def draw(self, draws: int, rng: np.random.Generator) -> Array:
        """Variances as they may truly be, [Z, A]; a, b and d0 of a draw are common to all arms."""
        drawn_Z = rng.choice(len(self.weight_G), draws, p=self.weight_G)
        return self.squares_GA[drawn_Z] / (2 * rng.standard_gamma(self.df_GA[drawn_Z] / 2))


def moderate(
    variance_A: Array,
    degrees_A: Array,
    out_of_play_A: Array | None = None,
    unlike_A: Array | None = None,
) -> Moderated:
    """Moderated variances of arms.

    Args:
        variance_A: sample variance over the seeds of each arm; ignored where there are 0 degrees.
        degrees_A: degrees of freedom of each, 0 for an arm that was trained once.
        out_of_play_A: of each arm's policy (`out_of_play`), 0..1; None leaves the trend out.
        unlike_A: level of the test of whether the arm's variance is larger than those of the
            others explain: 1 takes it from its own runs, 0 never does. None: 0 for all.

    Raises:
        ValueError: no arm has a degree of freedom, or all sample variances are zero.
    """
    degrees_A = np.asarray(degrees_A, dtype=np.float64)
    squares_A = np.where(degrees_A > 0, degrees_A * np.asarray(variance_A, dtype=np.float64), 0.0)
    if not degrees_A.sum() or not squares_A.sum():
        raise ValueError("no arm was trained with two seeds that differ, so no variance is known")
    x_A = np.zeros(len(degrees_A)) if out_of_play_A is None else np.asarray(out_of_play_A)
    flat = bool(np.ptp(x_A) == 0)
    slopes, prior = (np.zeros(1), np.ones(1)) if flat else (SLOPES, SLOPE_PRIOR)
    log_scales = np.log(squares_A.sum() / degrees_A.sum()) + LOG_SCALES
    b_G1, d0_G1, a_G1 = (
        grid.reshape(-1, 1)
        for grid in np.meshgrid(slopes, PRIOR_DEGREES, log_scales, indexing="ij")
    )
    s0_GA = np.exp(a_G1 + b_G1 * (x_A - x_A.mean()))
    unlike_A = np.where(squares_A > 0, 0.0 if unlike_A is None else unlike_A, 0.0)
    log_f_GA = _log_likelihood(squares_A, degrees_A, s0_GA, d0_G1)
    with np.errstate(divide="ignore"):  # an outlier says little about the others
        log_w_GA = np.logaddexp(np.log(1 - unlike_A) + log_f_GA, np.log(unlike_A))
    log_w_G = log_w_GA.sum(1) + np.log(prior).repeat(len(log_f_GA) // len(prior))
    w_G = np.exp(log_w_G - log_w_G.max())
    w_G /= w_G.sum()
    own_A = unlike_A > 0
    own_A[own_A] = unlike_A[own_A] > _tail(
        squares_A[own_A], degrees_A[own_A], s0_GA[:, own_A], d0_G1, w_G
    )
    df_GA = np.where(own_A, degrees_A, d0_G1 + degrees_A)
    squares_GA = np.where(own_A, squares_A, d0_G1 * s0_GA + squares_A)
    return Moderated(1 / (w_G @ (df_GA / squares_GA)), w_G, df_GA, squares_GA)


def _tail(squares_A: Array, degrees_A: Array, s0_GA: Array, d0_G1: Array, w_G: Array) -> Array:
    """Probability of a sample variance as large as that of each arm, if it is like the others."""
    from scipy.special import betainc

    kept = w_G > 1e-6 * w_G.max()  # the beta function takes most of the time
    d0_G1, prior_GA = d0_G1[kept], d0_G1[kept] * s0_GA[kept]
    tail_GA = betainc(d0_G1 / 2, degrees_A / 2, prior_GA / (prior_GA + squares_A))
    tail_A: Array = w_G[kept] @ tail_GA / w_G[kept].sum()
    return tail_A


def _log_likelihood(squares_A: Array, degrees_A: Array, s0_GA: Array, d0_G1: Array) -> Array:
    """Log density of each log s²_i, s²_i / s0²_i ~ F(d_i, d0); 0 without a degree of freedom."""
    from scipy.special import betaln

    known_A = squares_A > 0
    half_A, half_G1 = np.where(known_A, degrees_A, 1.0) / 2, d0_G1 / 2
    log_x_GA = np.log(np.where(known_A, squares_A, 1.0) / (d0_G1 * s0_GA))
    log_f_GA = half_A * log_x_GA - (half_A + half_G1) * np.log1p(np.exp(log_x_GA))
    return np.where(known_A, log_f_GA - betaln(half_A, half_G1), 0.0)


def out_of_play(policy: Mapping[str, Any], length: int) -> float:
    """Share of the mask counts 1..length that a policy leaves out at the end of training.

    0 for uniform counts, almost 1 for a fixed rate; 0.5 if the policy is a plugin that is not
    installed here.
    """
    try:
        law = build("policy", dict(policy))
    except (InputError, ValueError):
        return 0.5
    length = min(length, MOST_COUNTS)
    late = np.mean([law.pmf(length, 1 - LATE * (k + 0.5) / 8) for k in range(8)], axis=0)
    return float(np.mean(late * length < IN_PLAY))
