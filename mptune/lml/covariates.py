"""Cheap guesses of log p(x_j), whose masked sums are control variates of the score.

A guess u_j that depends on the sequence but never on the mask gives, under uniform masks of size M,

    c = (D/M) sum_{j in mask} u_j - sum_j u_j      with      E[c | x, M] = 0   exactly.

A guess u_j(s) that also depends on which neighbours of j are masked, s, follows the model further:

    c = (D/M) sum_{j in mask} u_j(s_j) - sum_j sum_s P(s | j in mask, M) u_j(s),

where P(s | j in mask, M) is hypergeometric: one given neighbour is visible with probability
(D-M)/(D-1), two with (D-M)(D-M-1) / ((D-1)(D-2)), and so on.

A poor guess costs precision: the score has the same mean with any guess, also with one counted on
the scored sequences. One that is constant but for rounding is dropped (`mptune.lml.regression`).

Shape suffixes: _RD sequences x positions, _RkD x bands, _RDC x guesses. V is the vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.lml.groups import BoolArray, FloatArray, IntArray

_PSEUDO_COUNT = 5.0


class Covariates(Protocol):
    """Guesses of the masked sums of a model, in nats."""

    def controls(
        self, tokens_RD: NDArray[Any], observed_RD: BoolArray, masks_RkD: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """Control variates c [R, k, C], E[c | x, M] = 0 over masks, and their levels g [R, C].

        ``masks_RkD`` are k masks of each sequence, each of at least one observed position. The
        level is the guess of the sequence's score: the mean over M = 1..D of what c subtracts.
        """
        ...


def position_controls(
    guess_RDC: FloatArray, observed_RD: BoolArray, masks_RkD: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Controls and levels of guesses [R, D, C] that do not depend on the mask."""
    guess_RDC = np.where(observed_RD[..., None], guess_RDC, 0.0)
    level_RC = guess_RDC.sum(axis=1)
    sums_RkC = masks_RkD.astype(np.float64) @ guess_RDC
    return _scale(observed_RD, masks_RkD)[..., None] * sums_RkC - level_RC[:, None, :], level_RC


def _scale(observed_RD: BoolArray, masks_RkD: BoolArray) -> FloatArray:
    """D / M of each forward [R, k]."""
    return observed_RD.sum(axis=1)[:, None] / masks_RkD.sum(axis=2)


@dataclass(frozen=True, eq=False)
class CountTable:
    """How often each token followed each context, as sorted codes ``context * base + token``."""

    base: int
    codes: IntArray
    counts: IntArray

    @classmethod
    def fit(cls, context: IntArray, token: IntArray, base: int) -> CountTable:
        codes, counts = np.unique(context * base + token, return_counts=True)
        return cls(base, codes, counts)

    @cached_property
    def cumulative(self) -> IntArray:
        """Counts below each code; one more entry than codes."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def probability(self, context: IntArray, token: IntArray, prior: FloatArray) -> FloatArray:
        """p(token | context), shrunk to ``prior`` by a Dirichlet pseudo-count."""
        code = (context * self.base + token).ravel()
        # Sorted look-ups are five times as fast in a table larger than the processor's cache.
        order = np.argsort(code)
        joint, total = np.empty_like(code), np.empty_like(code)
        joint[order], total[order] = self._joint_and_total(code[order])
        share = (joint + _PSEUDO_COUNT * prior.ravel()) / (total + _PSEUDO_COUNT)
        return share.reshape(context.shape)

    def _joint_and_total(self, code: IntArray) -> tuple[IntArray, IntArray]:
        """How often each code, and any code of its context, was counted."""
        context = code // self.base * self.base
        edges = np.stack([code, code + 1, context, context + self.base])
        below = self.cumulative[np.searchsorted(self.codes, edges)]
        return below[1] - below[0], below[3] - below[2]


@dataclass(frozen=True, eq=False)
class TokenCovariates:
    """Four guesses from counts of training tokens, shrunk along the list:

    log p(x_j); log p(x_j | x_{j-1}) + log p(x_j | x_{j+1}) - log p(x_j), a naive Bayes score;
    log p(x_j | x_{j-1}, x_{j+1}); and log p(x_j | those of the two that are visible), which depends
    on the mask. Unobserved neighbours and both ends count as one extra symbol.
    """

    vocabulary_size: int
    unigram: FloatArray
    """Smoothed p of each token [V]."""
    left: CountTable
    right: CountTable
    both: CountTable

    @classmethod
    def fit(
        cls, train_tokens: ArrayLike, train_observed: ArrayLike | None, vocabulary_size: int
    ) -> TokenCovariates:
        """Count ``train_tokens`` [N, D], ids in 0..V-1 where ``train_observed`` [N, D] is True.

        Raises ValueError for an observed id outside the vocabulary.
        """
        if not 1 <= vocabulary_size < 2**20:
            raise ValueError(f"vocabulary_size must be in 1..2**20-1; it is {vocabulary_size}")
        token, left, right, here = _neighbourhood(train_tokens, train_observed, vocabulary_size)
        token, left, right = token[here], left[here], right[here]
        unigram = np.bincount(token, minlength=vocabulary_size) + 0.5
        base = vocabulary_size + 1
        return cls(
            vocabulary_size,
            unigram / unigram.sum(),
            CountTable.fit(left, token, base),
            CountTable.fit(right, token, base),
            CountTable.fit(left * base + right, token, base),
        )

    def controls(
        self, tokens_RD: NDArray[Any], observed_RD: BoolArray, masks_RkD: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """Four controls: the guesses of `position_features`, and one that depends on the mask."""
        guess_RDC, by_state = self._guesses(tokens_RD, observed_RD)
        control_RkC, level_RC = position_controls(guess_RDC, observed_RD, masks_RkD)
        control_Rk, level_R = _neighbour_control(by_state, observed_RD, masks_RkD)
        return (
            np.concatenate([control_RkC, control_Rk[..., None]], axis=-1),
            np.concatenate([level_RC, level_R[:, None]], axis=-1),
        )

    def position_features(
        self, tokens_ND: ArrayLike, observed_ND: ArrayLike | None = None
    ) -> FloatArray:
        """Guesses that do not depend on the mask [N, D, 3], nats; 0 where not observed."""
        return self._guesses(tokens_ND, observed_ND)[0]

    def _guesses(
        self, tokens_ND: ArrayLike, observed_ND: ArrayLike | None
    ) -> tuple[FloatArray, FloatArray]:
        """The three guesses [N, D, 3], and log p(x_j | those neighbours that are visible) for
        neither, the left, the right, and both of them [N, D, 4]; 0 where not observed."""
        token, left, right, here = _neighbourhood(tokens_ND, observed_ND, self.vocabulary_size)
        unigram = self.unigram[np.where(here, token, 0)]
        from_left = self.left.probability(left, token, unigram)
        from_right = self.right.probability(right, token, unigram)
        context = left * (self.vocabulary_size + 1) + right
        from_both = self.both.probability(context, token, (from_left + from_right) / 2)
        product = from_left * from_right / unigram
        stacked = np.stack([unigram, product, from_both, from_left, from_right], axis=-1)
        logs = np.log(np.where(here[..., None], stacked, 1.0))
        return logs[..., :3], logs[..., [0, 3, 4, 2]]


def _neighbour_control(
    guess_RDs: FloatArray, observed_RD: BoolArray, masks_RkD: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Control [R, k] and level [R] of guesses by state s: neither, left, right, both visible."""
    has_left_RD, has_right_RD = _shifted(observed_RD, 1), _shifted(observed_RD, -1)
    seen_RkD = observed_RD[:, None, :] & ~masks_RkD
    state_RkD = _shifted(seen_RkD, 1) + 2 * _shifted(seen_RkD, -1)
    drawn_RkD = np.take_along_axis(guess_RDs[:, None], state_RkD[..., None], axis=-1)[..., 0]
    drawn_Rk = _scale(observed_RD, masks_RkD) * np.where(masks_RkD, drawn_RkD, 0.0).sum(axis=-1)
    sums_RP = _sums_by_neighbours(guess_RDs, observed_RD, has_left_RD, has_right_RD)
    chance_RkP = _chances(observed_RD.sum(axis=1)[:, None], masks_RkD.sum(axis=2))
    control_Rk: FloatArray = drawn_Rk - (chance_RkP @ sums_RP[:, :, None])[..., 0]
    level_R: FloatArray = sums_RP @ _MEAN_CHANCES
    return control_Rk, level_R


def _shifted(flags: BoolArray, by: int) -> IntArray:
    """0 or 1: the flag of the neighbour at the left (1) or right (-1); 0 beyond the ends."""
    moved = np.zeros(flags.shape, np.int64)
    if by > 0:
        moved[..., 1:] = flags[..., :-1]
    else:
        moved[..., :-1] = flags[..., 1:]
    return moved


def _sums_by_neighbours(
    guess_RDs: FloatArray, observed_RD: BoolArray, left_RD: IntArray, right_RD: IntArray
) -> FloatArray:
    """Sums over positions [R, 6]: without neighbours; with one, masked and seen; with two, both
    masked, one seen (twice as likely, hence the sum of two guesses), both seen."""
    neither, left, right, both = np.moveaxis(guess_RDs, -1, 0)
    number_RD = np.where(observed_RD, left_RD + right_RD, -1)
    one = np.where(left_RD == 1, left, right)
    terms = [(0, neither), (1, neither), (1, one), (2, neither), (2, left + right), (2, both)]
    return np.stack([np.where(number_RD == k, u, 0.0).sum(axis=1) for k, u in terms], axis=-1)


_MEAN_CHANCES = np.array([1, 1 / 2, 1 / 2, 1 / 3, 1 / 6, 1 / 3])
"""`_chances` averaged over M = 1..D, whatever D."""


def _chances(lengths_R1: IntArray, counts_Rk: IntArray) -> FloatArray:
    """P(state | j masked) of each sum of `_sums_by_neighbours` [R, k, 6] at mask count M of D."""
    others = np.maximum(lengths_R1 - 1, 1)
    pairs = np.maximum(others * (lengths_R1 - 2), 1)
    masked, seen = counts_Rk - 1, lengths_R1 - counts_Rk
    return np.stack(
        [
            np.ones(counts_Rk.shape),
            masked / others,
            seen / others,
            masked * (masked - 1) / pairs,
            seen * masked / pairs,
            seen * (seen - 1) / pairs,
        ],
        axis=-1,
    )


def _neighbourhood(
    tokens_ND: ArrayLike, observed_ND: ArrayLike | None, vocabulary_size: int
) -> tuple[IntArray, IntArray, IntArray, BoolArray]:
    """Tokens, left and right neighbours [N, D], V standing for "none"; and what is observed."""
    tokens = np.asarray(tokens_ND)
    observed = np.ones(tokens.shape, np.bool_) if observed_ND is None else np.asarray(observed_ND)
    bad = observed & ((tokens < 0) | (tokens >= vocabulary_size))
    if bad.any():
        row, position = np.argwhere(bad)[0]
        raise ValueError(
            f"token {tokens[row, position]} of sequence {row}, position {position} is outside the "
            f"vocabulary 0..{vocabulary_size - 1}; mark it unobserved or raise vocabulary_size"
        )
    padded = np.pad(
        np.where(observed, tokens, vocabulary_size).astype(np.int64),
        ((0, 0), (1, 1)),
        constant_values=vocabulary_size,
    )
    return padded[:, 1:-1], padded[:, :-2], padded[:, 2:], observed.astype(np.bool_)


@dataclass(frozen=True, eq=False)
class GaussianCovariates:
    """For real values: log density of each position alone, and given all others, if normal."""

    mean: FloatArray
    """[D]"""
    covariance: FloatArray
    """[D, D]"""

    @classmethod
    def fit(cls, train_values: ArrayLike, shrinkage: float = 0.01) -> GaussianCovariates:
        """Moments of complete ``train_values`` [N, D]; the covariance shrunk to its diagonal."""
        values = np.asarray(train_values, np.float64)
        covariance = np.cov(values, rowvar=False).reshape(values.shape[1], -1)
        diagonal = np.diag(np.diag(covariance))
        return cls(values.mean(axis=0), (1 - shrinkage) * covariance + shrinkage * diagonal)

    def controls(
        self, tokens_RD: NDArray[Any], observed_RD: BoolArray, masks_RkD: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """Two controls, of the guesses of `position_features`."""
        guess_RDC = self.position_features(tokens_RD, observed_RD)
        return position_controls(guess_RDC, observed_RD, masks_RkD)

    def position_features(
        self, tokens_ND: ArrayLike, observed_ND: ArrayLike | None = None
    ) -> FloatArray:
        """The two guesses [N, D, 2], nats; unobserved values are set to their mean."""
        residual = np.asarray(tokens_ND, np.float64) - self.mean
        if observed_ND is not None:
            residual = np.where(np.asarray(observed_ND), residual, 0.0)
        precision = np.linalg.inv(self.covariance)
        conditional = residual @ precision / np.diag(precision)
        return np.stack(
            [
                _log_normal(residual, np.diag(self.covariance)),
                _log_normal(conditional, 1 / np.diag(precision)),
            ],
            axis=-1,
        )


def _log_normal(residual: FloatArray, variance: FloatArray) -> FloatArray:
    """Log density of a centred normal."""
    return -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))
