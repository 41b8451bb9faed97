"""The true scores of candidates that were trained once or a few times: their joint posterior.

Notation, for candidate i, run in column c: a training seed, scored on plan p (0: the search's,
1: a fresh one):

    y_ic = theta_i + delta_p + gamma_c + u_ip + N(0, sigma²_i)        one run
    theta_i ~ N(mu, tau²)                                     how candidates differ
    gamma_c ~ N(0, phi²)                                      what a seed does to all candidates
    u_ip ~ N(0, e_ip)                                         evaluation noise of a candidate
    delta_0 = 0, delta_1 ~ N(0, D)                            the plans' sequences differ in level
    1 / sigma²_i ~ chi²(d0) / (d0 s0²_i), log s0²_i = a + b x_i   as in `mptune.analysis.moderation`
    tau ~ half-Cauchy(s), phi ~ half-Cauchy(s / 2)            Gelman 2006, doi 10.1214/06-BA117A
    s² = typical sigma² + mean e

mu and a have flat priors; b and d0 have those of `moderation`. The spread tau is integrated over
instead of plugged in: its estimate is zero, or far too large, in half of all searches with few
candidates, and a probability that rests on it is then certain of noise.

All unknowns are drawn by a Gibbs sampler: tau on a grid with mu and theta integrated out, the rest
from its conditional distributions.

Shape suffixes: B problems or chains, A candidates, C columns, P = 2 plans, T spreads, S slopes,
F values of d0, H values of phi.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import PRIOR_DEGREES, SLOPE_PRIOR, SLOPES

SPREADS = np.geomspace(0.03, 1e4, 45)
"""Grid of tau / s: from candidates that are equal to sizes and learning rates far apart."""

COMMON = np.geomspace(0.03, 100.0, 25)
"""Grid of phi / s."""

COMMON_SCALE = 0.5
"""Of the half-Cauchy prior of phi / s."""

BURN_IN = 60
"""First draws of every chain that are left out."""


@dataclass(frozen=True, eq=False)
class MeasuredPoints:
    """What was measured, in one unit; arrays may have leading dimensions, but `plan_C` and `D`.

    Attributes:
        run_AC: score of each run; NaN where there is none.
        plan_C: plan of each column, 0 or 1.
        evaluation_AP: evaluation variance of the mean over runs on each plan, without what all
            candidates share.
        is_candidate_A: false for points that can not be chosen: they tell about noise only.
        out_of_play_A: share of mask counts that the policy leaves out late in training.
        shift: variance D of the difference in level between the plans.
    """

    run_AC: Array
    plan_C: NDArray[np.int_]
    evaluation_AP: Array
    is_candidate_A: NDArray[np.bool_]
    out_of_play_A: Array
    shift: float


def draw_scores(
    seen: MeasuredPoints, chains: int, draws: int, seed: int = 0
) -> tuple[Array, Array]:
    """Draws of the true scores theta on plan 0, and of the variances of one run over seeds.

    Returns:
        Both [chains * draws, ..., A]; draws of one chain depend on each other a little.
    """
    rng = np.random.default_rng(seed)
    *leading, A, C = seen.run_AC.shape

    def tiled(value: Array, *last: int) -> Array:
        shape = (chains, *leading, *last)
        return np.array(np.broadcast_to(value, shape), dtype=np.float64).reshape(-1, *last)

    y_BAC, e_BAP = tiled(seen.run_AC, A, C), tiled(seen.evaluation_AP, A, 2)
    x_BA = tiled(seen.out_of_play_A, A)
    B, can_A = len(y_BAC), seen.is_candidate_A
    has_BAC = np.isfinite(y_BAC)
    y_BAC = np.where(has_BAC, y_BAC, 0.0)
    plan_CP = (seen.plan_C[:, None] == np.arange(2)).astype(float)
    n_BAP = has_BAC @ plan_CP
    has_BAP, runs_BA = n_BAP > 0, n_BAP.sum(2)
    n_BAP = np.maximum(n_BAP, 1.0)
    x_BA = x_BA - x_BA.mean(1, keepdims=True)
    flat = bool(np.ptp(x_BA) == 0)
    slopes_S, log_prior_S = (np.zeros(1), np.zeros(1)) if flat else (SLOPES, np.log(SLOPE_PRIOR))
    counted_BAP = has_BAP & can_A[:, None]
    e_B1 = ((e_BAP * counted_BAP).sum((1, 2)) / counted_BAP.sum((1, 2)))[:, None]
    on_fresh_C = plan_CP[:, 1]

    def squares_of(z_BAC: Array) -> tuple[Array, Array]:
        """Mean of the runs on each plan, and sum of squares around these."""
        mean_BAP = (z_BAC * has_BAC) @ plan_CP / n_BAP
        return mean_BAP, (has_BAC * (z_BAC - mean_BAP @ plan_CP.T) ** 2).sum(2)

    m_BAP, squares_BA = squares_of(y_BAC)
    # Runs that are equal to the last digit would make the seed variance zero.
    least_B1 = np.maximum(1e-18, 1e-7 * m_BAP[:, can_A, 0].var(1, keepdims=True))
    # Start at the variance within plans, and of the differences of those that are on both.
    both_BA = has_BAP.sum(2) == 2
    change_BA = np.where(both_BA, m_BAP[:, :, 1] - m_BAP[:, :, 0], 0.0)
    centre_B1 = change_BA.sum(1, keepdims=True) / np.maximum(1, both_BA.sum(1, keepdims=True))
    squares_B = squares_BA.sum(1) + (both_BA * (change_BA - centre_B1) ** 2).sum(1) / 2
    degrees_B = (runs_BA - has_BAP.sum(2)).sum(1) + np.maximum(0, both_BA.sum(1) - 1)
    pooled_B1 = (squares_B / degrees_B)[:, None] + least_B1
    sigma2_BA = np.repeat(pooled_B1, A, axis=1)
    log_s0_B1, slope_B1, d0_B1 = np.log(pooled_B1), np.zeros((B, 1)), np.full((B, 1), 4.0)
    delta_B1, gamma_BC = np.zeros((B, 1)), np.zeros((B, C))
    phi_B1 = np.sqrt(pooled_B1) * COMMON_SCALE

    def accepts(old_B1: Array, new_B1: Array, tau_B1: Array) -> NDArray[np.bool_]:
        """Metropolis step for a, which is also in the priors of tau and phi."""
        old_B1, new_B1 = (np.sqrt(np.exp(log_B1) + e_B1) for log_B1 in (old_B1, new_B1))
        ratio_B1 = _half_cauchy(tau_B1, new_B1) / _half_cauchy(tau_B1, old_B1)
        ratio_B1 *= _half_cauchy(phi_B1, COMMON_SCALE * new_B1)
        ratio_B1 /= _half_cauchy(phi_B1, COMMON_SCALE * old_B1)
        is_new_B1: NDArray[np.bool_] = rng.random((B, 1)) < ratio_B1
        return is_new_B1

    kept_theta, kept_variance = [], []
    for sweep in range(BURN_IN + draws):
        # theta, mu and tau, given the seed variances and all levels.
        m_BAP, squares_BA = squares_of(y_BAC - gamma_BC[:, None])
        m_BAP[:, :, 1] -= delta_B1
        w_BAP = has_BAP / (sigma2_BA[:, :, None] / n_BAP + e_BAP)
        w_BA = w_BAP.sum(2)
        y_BA = (w_BAP * m_BAP).sum(2) / w_BA
        s_B1 = np.sqrt(np.exp(log_s0_B1) + e_B1)
        tau_BT = s_B1 * SPREADS
        precision_BTK = 1 / (tau_BT[:, :, None] ** 2 + 1 / w_BA[:, None, can_A])
        sum_BT = precision_BTK.sum(2)
        mu_BT = (precision_BTK @ y_BA[:, can_A, None])[:, :, 0] / sum_BT
        far_BT = (precision_BTK * (y_BA[:, None, can_A] - mu_BT[:, :, None]) ** 2).sum(2)
        log_w_BT = (np.log(precision_BTK).sum(2) - np.log(sum_BT) - far_BT) / 2
        chosen_B = _choose(rng, log_w_BT + np.log(_half_cauchy(SPREADS, 1.0) * SPREADS))
        at_B = np.arange(B), chosen_B
        tau_B1 = tau_BT[at_B][:, None]
        mu_B1 = (mu_BT[at_B] + rng.standard_normal(B) / np.sqrt(sum_BT[at_B]))[:, None]
        keep_BA = np.where(can_A, w_BA * tau_B1**2 / (1 + w_BA * tau_B1**2), 1.0)
        theta_BA = mu_B1 + keep_BA * (y_BA - mu_B1)
        theta_BA += np.sqrt(keep_BA / w_BA) * rng.standard_normal((B, A))

        # The plans' difference in level, and each mean's part of evaluation.
        prior = 1 / seen.shift if seen.shift > 0 else np.inf
        m_BAP[:, :, 1] += delta_B1
        weight_B1 = w_BAP[:, :, 1].sum(1, keepdims=True) + prior
        delta_B1 = (w_BAP[:, :, 1] * (m_BAP[:, :, 1] - theta_BA)).sum(1, keepdims=True) / weight_B1
        delta_B1 += rng.standard_normal((B, 1)) / np.sqrt(weight_B1)
        m_BAP[:, :, 1] -= delta_B1
        r_BAP = has_BAP * (m_BAP - theta_BA[:, :, None])
        seeds_BAP = sigma2_BA[:, :, None] / n_BAP
        share_BAP = e_BAP / (seeds_BAP + e_BAP)
        u_BAP = share_BAP * r_BAP
        u_BAP += np.sqrt(share_BAP * seeds_BAP) * rng.standard_normal(r_BAP.shape)
        all_squares_BA = squares_BA + (has_BAP * n_BAP * (r_BAP - u_BAP) ** 2).sum(2)
        all_squares_BA += runs_BA * least_B1

        # All seed variances by a common factor, then each.
        factor_B = (all_squares_BA / sigma2_BA).sum(1) / rng.chisquare(runs_BA.sum(1))
        proposed_B1 = log_s0_B1 + np.log(factor_B)[:, None]
        log_s0_B1 = np.where(accepts(log_s0_B1, proposed_B1, tau_B1), proposed_B1, log_s0_B1)
        scaled_BA = d0_B1 * np.exp(log_s0_B1 + slope_B1 * x_BA) + all_squares_BA
        sigma2_BA = scaled_BA / rng.chisquare(d0_B1 + runs_BA)

        # What the seed variances have in common: b and d0 with a integrated out, then a.
        inverse_BS = (np.exp(slopes_S[:, None] * x_BA[:, None]) / sigma2_BA[:, None]).sum(2)
        log_w_BSF = log_prior_S[:, None] + _log_variances(inverse_BS, sigma2_BA)
        s_B, f_B = np.divmod(_choose(rng, log_w_BSF.reshape(B, -1)), len(PRIOR_DEGREES))
        d0_B = PRIOR_DEGREES[f_B]
        proposed_B = rng.gamma(A * d0_B / 2) / (d0_B / 2 * inverse_BS[np.arange(B), s_B])
        proposed_B1 = np.log(proposed_B)[:, None]
        is_new_B1 = accepts(log_s0_B1, proposed_B1, tau_B1)
        log_s0_B1 = np.where(is_new_B1, proposed_B1, log_s0_B1)
        slope_B1 = np.where(is_new_B1, slopes_S[s_B][:, None], slope_B1)
        d0_B1 = np.where(is_new_B1, d0_B[:, None], d0_B1)

        # What seeds do to all candidates alike: each, their spread, and the level that they share
        # with theta.
        expected_BAP = theta_BA[:, :, None] + u_BAP
        left_BAC = y_BAC - expected_BAP @ plan_CP.T - delta_B1[:, :, None] * on_fresh_C
        weight_BAC = has_BAC / sigma2_BA[:, :, None]
        precision_BC = weight_BAC.sum(1) + 1 / phi_B1**2
        gamma_BC = (weight_BAC * left_BAC).sum(1) / precision_BC
        gamma_BC += rng.standard_normal((B, C)) / np.sqrt(precision_BC)
        level_B1 = gamma_BC.mean(1, keepdims=True)
        level_B1 += phi_B1 / np.sqrt(C) * rng.standard_normal((B, 1))
        gamma_BC, theta_BA = gamma_BC - level_B1, theta_BA + level_B1
        phi_BH = np.sqrt(np.exp(log_s0_B1) + e_B1) * COMMON
        log_w_BH = -C * np.log(phi_BH) - (gamma_BC**2).sum(1, keepdims=True) / (2 * phi_BH**2)
        chosen_B = _choose(rng, log_w_BH + np.log(_half_cauchy(COMMON, COMMON_SCALE) * COMMON))
        phi_B1 = phi_BH[np.arange(B), chosen_B][:, None]
        if sweep >= BURN_IN:
            kept_theta.append(theta_BA)
            kept_variance.append(sigma2_BA + phi_B1**2)
    shape = draws * chains, *leading, A
    return np.reshape(kept_theta, shape), np.reshape(kept_variance, shape)


def _half_cauchy(x: Array, scale: Array | float) -> Array:
    """Density of a half-Cauchy distribution, without its constant."""
    density: Array = scale / (scale**2 + x**2)
    return density


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
