"""Variance reduction: the predictable part of a forward's score is subtracted, its mean added back.

Notation
    y     (D/M) sum over the mask of log p: one forward's estimate of D S(M), nats
    t     M / D, the mask rate;   w = 1 / (D q(M)), so that E[w y] = sum over M of S(M) = LML
    c     control variates, E[c | x, M] = 0;   g  sequence-level sums of the same guesses, centred
    h     the fit   D f(t) theta_f + sum_C c beta(t) theta_c + sum_C g gamma(t) theta_g
    H     its exact mean over M = 1..D under uniform masks:  D mean f + sum_C g mean gamma
    z     w (y - h) + H, with E[z | x] = LML for any theta that does not depend on this forward

theta is fitted on the other folds of sequences: an in-sample fit biases the score.
t^12 bends the fit near t = 1, where nothing is left to condition on.

Shape suffixes: _n sequences, _nk sequences x bands, _nkC x guesses, _nkP x columns of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.lml.groups import FloatArray, IntArray
from mptune.lml.plan import DEFAULT_VARIANCE, FOLDS, VarianceLaw, variance_basis

ROWS_PER_COLUMN = 6
"""A richer fit is used only with this many forwards in the training folds per coefficient."""


ROUNDING = 1e-9
"""Control variates and directions of the design that are smaller than this share are dropped."""


@dataclass(frozen=True)
class Terms:
    """Powers of t in f, beta and gamma; f has log t besides."""

    f: tuple[int, ...]
    beta: tuple[int, ...]
    gamma: tuple[int, ...]

    def columns(self, guesses: int) -> int:
        """Number of coefficients with ``guesses`` control variates."""
        return len(self.f) + 1 + guesses * (len(self.beta) + len(self.gamma))


LADDER = (
    Terms(f=(0, 1, 2, 3, 12), beta=(0, 1, 2), gamma=(0, 1, 12)),
    Terms(f=(0, 1), beta=(0, 1), gamma=(0,)),
    Terms(f=(0,), beta=(0,), gamma=()),
)
"""From rich to poor; with too few forwards even for the last, z = w y."""


@dataclass(frozen=True, eq=False)
class Observations:
    """The forwards of one model on the kept sequences of one plan."""

    y_nk: FloatArray
    counts_nk: IntArray
    weights_nk: FloatArray
    lengths_n: IntArray
    controls: FloatArray
    """c [n, k, C]"""
    levels: FloatArray
    """g [n, C], not yet centred"""

    @classmethod
    def of_sequences(cls, parts: Sequence[Observations]) -> Observations:
        """Forwards of different sequences, equally many of each, as one."""
        joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        return cls(**joined)

    @classmethod
    def of_bands(cls, parts: Sequence[Observations]) -> Observations:
        """Different forwards of the same sequences, in the same order, as one."""

        def side_by_side(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(p, name) for p in parts], axis=1)

        return replace(
            parts[0],
            y_nk=side_by_side("y_nk"),
            counts_nk=side_by_side("counts_nk"),
            weights_nk=side_by_side("weights_nk"),
            controls=side_by_side("controls"),
        )

    @property
    def rates_nk(self) -> FloatArray:
        """t = M / D."""
        return self.counts_nk / self.lengths_n[:, None]


@dataclass(frozen=True, eq=False)
class Reduction:
    """Scores after variance reduction, and the smooth curve that was subtracted."""

    z_nk: FloatArray
    residuals_nk: FloatArray
    """y - h in nats, out of fold."""
    terms: Terms | None
    f_coefficients: FloatArray

    def smooth(self, rates: FloatArray) -> FloatArray:
        """Fitted S at mask ``rates``, nats per masked position; NaN where nothing was fitted."""
        if self.terms is None:
            return np.full(rates.shape, np.nan)
        return _count_terms(rates, self.terms.f) @ self.f_coefficients


def reduce_variance(data: Observations) -> Reduction:
    """Cross-fit h on four folds of sequences and return z [n, k]."""
    terms = _choose_terms(data)
    if terms is None:
        return Reduction(data.weights_nk * data.y_nk, data.y_nk, None, np.empty(0))
    design_nkP, mean_nP = _design(data, terms)
    fold_n = np.arange(len(data.lengths_n)) % FOLDS
    residuals_nk, put_back_n = np.empty_like(data.y_nk), np.empty(fold_n.size)
    coefficients = []
    for fold in range(FOLDS):
        out = fold_n == fold
        theta = _weighted_fit(design_nkP[~out], data.y_nk[~out], data.weights_nk[~out])
        residuals_nk[out] = data.y_nk[out] - design_nkP[out] @ theta
        put_back_n[out] = mean_nP[out] @ theta
        coefficients.append(theta[: len(terms.f) + 1])
    z_nk = data.weights_nk * residuals_nk + put_back_n[:, None]
    return Reduction(z_nk, residuals_nk, terms, np.mean(coefficients, axis=0))


def _choose_terms(data: Observations) -> Terms | None:
    """The richest terms of the ladder that the training folds have enough forwards for."""
    n, guesses = len(data.lengths_n), data.levels.shape[1]
    training = (n - -(-n // FOLDS)) * data.y_nk.shape[1]
    for terms in LADDER:
        if n >= 2 * FOLDS and training >= ROWS_PER_COLUMN * terms.columns(guesses):
            return terms
    return None


def _powers(t: FloatArray, exponents: Sequence[int]) -> FloatArray:
    return np.stack([t**e for e in exponents], axis=-1) if exponents else np.empty((*t.shape, 0))


def _count_terms(t: FloatArray, exponents: Sequence[int]) -> FloatArray:
    """f(t): powers of t, then log t."""
    return np.concatenate([_powers(t, exponents), np.log(t)[..., None]], axis=-1)


def _interact(columns: FloatArray, basis: FloatArray) -> FloatArray:
    """Products of every column with every basis term, flattened on the last axis."""
    product = columns[..., :, None] * basis[..., None, :]
    return product.reshape(*product.shape[:-2], columns.shape[-1] * basis.shape[-1])


def _design(data: Observations, terms: Terms) -> tuple[FloatArray, FloatArray]:
    """Columns of h [n, k, P], and the mean of each over M = 1..D_i [n, P]."""
    t_nk, lengths_n = data.rates_nk, data.lengths_n
    controls_nkC, levels_nC = _beyond_rounding(data)
    levels_nkC = np.broadcast_to(levels_nC[:, None, :], (*t_nk.shape, levels_nC.shape[1]))
    design_nkP = np.concatenate(
        [
            lengths_n[:, None, None] * _count_terms(t_nk, terms.f),
            _interact(controls_nkC, _powers(t_nk, terms.beta)),
            _interact(levels_nkC, _powers(t_nk, terms.gamma)),
        ],
        axis=-1,
    )
    mean_f_nF, mean_gamma_nG = _means_over_counts(lengths_n, terms)
    no_controls = np.zeros((lengths_n.size, levels_nC.shape[1] * len(terms.beta)))
    scaled_f_nF = lengths_n[:, None] * mean_f_nF
    put_back = [scaled_f_nF, no_controls, _interact(levels_nC, mean_gamma_nG)]
    return design_nkP, np.concatenate(put_back, axis=-1)


def _beyond_rounding(data: Observations) -> tuple[FloatArray, FloatArray]:
    """c and g, g less its mean per observed position, so that f(t) alone is the average curve.

    What is constant but for rounding (every sequence has the same tokens, all tokens are equally
    frequent) is set to exactly 0 and gets no coefficient: rounding errors do not have mean 0.
    """
    per_position = data.levels.sum(axis=0) / data.lengths_n.sum()
    centred_nC = data.levels - data.lengths_n[:, None] * per_position
    guesses_nkC = data.controls + data.levels[:, None, :]
    least_C = ROUNDING * np.sqrt((guesses_nkC**2).mean(axis=(0, 1)))
    controls_C = np.sqrt((data.controls**2).mean(axis=(0, 1))) > least_C
    levels_C = np.sqrt((centred_nC**2).mean(axis=0)) > least_C
    return data.controls * controls_C, centred_nC * levels_C


def _means_over_counts(lengths_n: IntArray, terms: Terms) -> tuple[FloatArray, FloatArray]:
    """Means of f(M/D_i) and gamma(M/D_i) over M = 1..D_i, for each sequence."""
    distinct, which_n = np.unique(lengths_n, return_inverse=True)
    grids = [np.arange(1, length + 1) / length for length in distinct]
    mean_f = np.stack([_count_terms(t, terms.f).mean(axis=0) for t in grids])
    mean_gamma = np.stack([_powers(t, terms.gamma).mean(axis=0) for t in grids])
    return mean_f[which_n], mean_gamma[which_n]


def _weighted_fit(design_nkP: FloatArray, y_nk: FloatArray, weights_nk: FloatArray) -> FloatArray:
    """Least squares of w y on w h, because the spread of z = w (y - h) + H must be small."""
    weights = weights_nk.reshape(-1, 1)
    columns = design_nkP.reshape(weights.size, -1) * weights
    # Scaled, so that the cut-off for collinear columns (D = 1, constant guesses) has no unit.
    scale = np.sqrt((columns**2).mean(axis=0))
    scale[scale == 0.0] = 1.0
    target = y_nk.reshape(-1) * weights[:, 0]
    return np.linalg.lstsq(columns / scale, target, rcond=ROUNDING)[0] / scale


def fit_residual_variance(rates_nk: FloatArray, residuals_nk: FloatArray) -> VarianceLaw:
    """Fit residual^2 ~ a + b/t + c t^8 with a, b, c >= 0, normalised to a + b/t + c t^8 = 1 at 1/2.

    A tenth of the default law is mixed in, so that no mask count becomes impossible. The result
    is the ``residual_variance`` of a better plan (with another seed).
    """
    from scipy.optimize import nnls

    basis, square = variance_basis(rates_nk.ravel()), residuals_nk.ravel() ** 2
    if not square.any():
        return DEFAULT_VARIANCE
    default = np.array(DEFAULT_VARIANCE)
    law = default * square.mean() / (basis @ default).mean()
    for _ in range(3):
        # The spread of a squared residual grows with its mean: weigh by the current fit.
        expected = basis @ (0.9 * law + 0.1 * default * square.mean())
        law = nnls(basis / expected[:, None], square / expected)[0]
    middle = variance_basis(np.array(0.5))
    total = 0.9 * law / max(float(middle @ law), 1e-300) + 0.1 * default / float(middle @ default)
    a, b, c = (float(value) for value in total)
    return a, b, c
