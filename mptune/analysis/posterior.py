"""The true scores of candidates that were trained once or a few times: their joint posterior.

Notation, for candidate i, trained n_ip times and scored on plan p (0: the search's, 1: fresh):

    m_ip ~ N(theta_i + delta_p, sigma²_i / n_ip + e_ip)       its mean score on the plan
    s²_i ~ sigma²_i chi²(d_i) / d_i                           variance over its repeated seeds
    theta_i ~ N(mu, tau²)                                     how candidates differ
    tau ~ half-Cauchy(s), s² = the typical sigma² + e         (Gelman 2006, doi 10.1214/06-BA117A)
    1 / sigma²_i ~ chi²(d0) / (d0 s0²_i), log s0²_i = a + b x_i   as in `mptune.analysis.moderation`
    delta_0 = 0, delta_1 ~ N(0, D)                            the plans' sequences differ in level

mu and a have flat priors; b and d0 have those of `moderation`. The spread tau is integrated over
instead of plugged in: its estimate is zero, or far too large, in half of all searches with few
candidates, and a probability that rests on it is then certain of noise.

All unknowns are drawn by a Gibbs sampler: tau on a grid with mu and theta integrated out, the rest
from its conditional distributions. Runs of one seed are taken as independent: what a seed does to
all candidates alike counts as noise.

Shape suffixes: B problems or chains, A candidates, P = 2 plans, T spreads, S slopes, F for d0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import PRIOR_DEGREES, SLOPE_PRIOR, SLOPES

SPREADS = np.geomspace(0.03, 1e4, 45)
"""Grid of tau / s: from candidates that are equal to sizes and learning rates far apart."""

LOG_SPREAD_PRIOR = np.log(SPREADS / (1 + SPREADS**2))
"""Half-Cauchy, for the logarithm of tau / s."""

BURN_IN = 60
"""First draws of every chain that are left out."""


@dataclass(frozen=True, eq=False)
class Observations:
    """What was measured of the candidates, in one unit; every array may have leading dimensions B.

    Attributes:
        mean_AP: mean score on each plan; anything where `runs_AP` is 0.
        runs_AP: training runs behind it.
        evaluation_AP: evaluation variance of the mean, without what all candidates share.
        squares_A: sum of squares of repeated runs around their mean.
        degrees_A: degrees of freedom of that.
        out_of_play_A: share of mask counts that the policy leaves out late in training.
        shift: variance D of the difference in level between the plans.
    """

    mean_AP: Array
    runs_AP: Array
    evaluation_AP: Array
    squares_A: Array
    degrees_A: Array
    out_of_play_A: Array
    shift: float


def draw_scores(seen: Observations, chains: int, draws: int, seed: int = 0) -> tuple[Array, Array]:
    """Draws of the true scores theta on plan 0, and of the variances over seeds.

    A candidate without a run on any plan informs the variances only; its theta means nothing.

    Returns:
        Both [chains * draws, ..., A]; draws of one chain depend on each other a little.
    """
    rng = np.random.default_rng(seed)
    leading = seen.mean_AP.shape[:-2]

    def tiled(value: Array, *last: int) -> Array:
        shape = (chains, *leading, *last)
        return np.array(np.broadcast_to(value, shape), dtype=np.float64).reshape(-1, *last)

    A = seen.mean_AP.shape[-2]
    m_BAP, n_BAP, e_BAP = (
        tiled(value, A, 2) for value in (seen.mean_AP, seen.runs_AP, seen.evaluation_AP)
    )
    squares_BA, degrees_BA, x_BA = (
        tiled(value, A) for value in (seen.squares_A, seen.degrees_A, seen.out_of_play_A)
    )
    B = len(m_BAP)
    has_BAP = n_BAP > 0
    is_candidate_BA = has_BAP.any(2)
    m_BAP = np.where(has_BAP, m_BAP, 0.0)
    n_BAP = np.where(has_BAP, n_BAP, 1.0)
    total_BA = degrees_BA + has_BAP.sum(2)
    x_BA = x_BA - x_BA.mean(1, keepdims=True)
    flat = bool(np.ptp(x_BA) == 0)
    slopes_S, log_prior_S = (np.zeros(1), np.zeros(1)) if flat else (SLOPES, np.log(SLOPE_PRIOR))
    e_B1 = ((e_BAP * has_BAP).sum((1, 2)) / has_BAP.sum((1, 2)))[:, None]

    # Start at the variance within plans, and of the differences of those that are on both.
    both_BA = has_BAP.all(2)
    change_BA = np.where(both_BA, m_BAP[:, :, 1] - m_BAP[:, :, 0], 0.0)
    centre_B1 = change_BA.sum(1, keepdims=True) / np.maximum(1, both_BA.sum(1, keepdims=True))
    squares_B = squares_BA.sum(1) + (both_BA * (change_BA - centre_B1) ** 2).sum(1) / 2
    degrees_B = degrees_BA.sum(1) + np.maximum(0, both_BA.sum(1) - 1)
    pooled_B1 = np.maximum(squares_B / degrees_B, 1e-18)[:, None]
    sigma2_BA = np.repeat(pooled_B1, A, axis=1)
    log_s0_B1, slope_B1, d0_B1 = np.log(pooled_B1), np.zeros((B, 1)), np.full((B, 1), 4.0)
    delta_B1 = np.zeros((B, 1))

    def accepts(old_B1: Array, new_B1: Array, tau_B1: Array) -> NDArray[np.bool_]:
        """Metropolis step for a, which is also in the prior of tau: s / (s² + tau²)."""
        s2_old_B1, s2_new_B1 = np.exp(old_B1) + e_B1, np.exp(new_B1) + e_B1
        ratio_B1 = (s2_old_B1 + tau_B1**2) / (s2_new_B1 + tau_B1**2)
        is_new_B1: NDArray[np.bool_] = (
            rng.random((B, 1)) < np.sqrt(s2_new_B1 / s2_old_B1) * ratio_B1
        )
        return is_new_B1

    kept_theta, kept_sigma2 = [], []
    for sweep in range(BURN_IN + draws):
        # theta, mu and tau, given the seed variances and the plans' difference.
        w_BAP = has_BAP / (sigma2_BA[:, :, None] / n_BAP + e_BAP)
        w_BA = np.where(is_candidate_BA, w_BAP.sum(2), 1.0)
        y_BAP = m_BAP.copy()
        y_BAP[:, :, 1] -= delta_B1
        y_BA = (w_BAP * y_BAP).sum(2) / w_BA
        s_B1 = np.sqrt(np.exp(log_s0_B1) + e_B1)
        tau_BT = s_B1 * SPREADS
        precision_BTA = is_candidate_BA[:, None] / (tau_BT[:, :, None] ** 2 + 1 / w_BA[:, None])
        sum_BT = precision_BTA.sum(2)
        mu_BT = (precision_BTA @ y_BA[:, :, None])[:, :, 0] / sum_BT
        log_det_BT = np.log(np.where(is_candidate_BA[:, None], precision_BTA, 1.0)).sum(2)
        squares_BT = (precision_BTA * (y_BA[:, None] - mu_BT[:, :, None]) ** 2).sum(2)
        log_w_BT = LOG_SPREAD_PRIOR + (log_det_BT - np.log(sum_BT) - squares_BT) / 2
        chosen_B = _choose(rng, log_w_BT)
        at_B = np.arange(B), chosen_B
        tau_B1 = tau_BT[at_B][:, None]
        mu_B1 = (mu_BT[at_B] + rng.standard_normal(B) / np.sqrt(sum_BT[at_B]))[:, None]
        keep_BA = np.where(is_candidate_BA, w_BA * tau_B1**2 / (1 + w_BA * tau_B1**2), 0.0)
        theta_BA = mu_B1 + keep_BA * (y_BA - mu_B1)
        theta_BA += tau_B1 * np.sqrt(1 - keep_BA) * rng.standard_normal((B, A))

        # The plans' difference in level, and each mean's part of seeds.
        prior = 1 / seen.shift if seen.shift > 0 else np.inf
        weight_B1 = w_BAP[:, :, 1].sum(1, keepdims=True) + prior
        delta_B1 = (w_BAP[:, :, 1] * (m_BAP[:, :, 1] - theta_BA)).sum(1, keepdims=True) / weight_B1
        delta_B1 += rng.standard_normal((B, 1)) / np.sqrt(weight_B1)
        r_BAP = m_BAP - theta_BA[:, :, None]
        r_BAP[:, :, 1] -= delta_B1
        seeds_BAP = sigma2_BA[:, :, None] / n_BAP
        share_BAP = seeds_BAP / (seeds_BAP + e_BAP)
        r_BAP = share_BAP * r_BAP
        r_BAP += np.sqrt(share_BAP * e_BAP) * rng.standard_normal(r_BAP.shape)
        all_squares_BA = squares_BA + (has_BAP * n_BAP * r_BAP**2).sum(2)

        # All seed variances by a common factor, then each.
        factor_B = (all_squares_BA / sigma2_BA).sum(1) / rng.chisquare(total_BA.sum(1))
        proposed_B1 = log_s0_B1 + np.log(factor_B)[:, None]
        log_s0_B1 = np.where(accepts(log_s0_B1, proposed_B1, tau_B1), proposed_B1, log_s0_B1)
        trend_BA = np.exp(slope_B1 * x_BA)
        scaled_BA = d0_B1 * np.exp(log_s0_B1) * trend_BA + all_squares_BA
        sigma2_BA = scaled_BA / rng.chisquare(d0_B1 + total_BA)

        # What the seed variances have in common: b and d0 with a integrated out, then a.
        inverse_BS = (np.exp(slopes_S[:, None] * x_BA[:, None]) / sigma2_BA[:, None]).sum(2)
        log_w_BSF = log_prior_S[:, None] + _log_variances(inverse_BS, sigma2_BA)
        s_B, f_B = np.divmod(_choose(rng, log_w_BSF.reshape(B, -1)), len(PRIOR_DEGREES))
        d0_B = PRIOR_DEGREES[f_B]
        gamma_B = rng.gamma(A * d0_B / 2)
        proposed_B1 = np.log(gamma_B / (d0_B / 2 * inverse_BS[np.arange(B), s_B]))[:, None]
        is_new_B1 = accepts(log_s0_B1, proposed_B1, tau_B1)
        log_s0_B1 = np.where(is_new_B1, proposed_B1, log_s0_B1)
        slope_B1 = np.where(is_new_B1, slopes_S[s_B][:, None], slope_B1)
        d0_B1 = np.where(is_new_B1, d0_B[:, None], d0_B1)
        if sweep >= BURN_IN:
            kept_theta.append(theta_BA)
            kept_sigma2.append(sigma2_BA)
    shape = draws * chains, *leading, A
    return np.reshape(kept_theta, shape), np.reshape(kept_sigma2, shape)


def _choose(rng: np.random.Generator, log_w_BK: Array) -> NDArray[np.int_]:
    """An index of each row, with the probabilities of these logarithms."""
    w_BK = np.exp(log_w_BK - log_w_BK.max(1, keepdims=True)).cumsum(1)
    chosen_B: NDArray[np.int_] = (w_BK < rng.random((len(w_BK), 1)) * w_BK[:, -1:]).sum(1)
    return chosen_B


def _log_variances(inverse_BS: Array, sigma2_BA: Array) -> Array:
    """Log density of the seed variances for each b and d0, a integrated out, [B, S, F].

    `inverse_BS` is the sum over A of exp(b x) / sigma².
    """
    from scipy.special import gammaln

    half_F, A = PRIOR_DEGREES / 2, sigma2_BA.shape[1]
    constant_F = A * (half_F * np.log(half_F) - gammaln(half_F)) + gammaln(A * half_F)
    log_inverse_B11 = -np.log(sigma2_BA).sum(1)[:, None, None]
    log_sum_BSF = np.log(half_F * inverse_BS[:, :, None])
    log_w_BSF: Array = constant_F + half_F * (log_inverse_B11 - A * log_sum_BSF)
    return log_w_BSF
