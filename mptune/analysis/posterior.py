"""The true scores of candidates that were trained once or a few times: their joint posterior.

Notation, for candidate i, run in column c: a training seed, scored on plan p (0: the search's,
1: a fresh one):

    y_ic = theta_i + delta_p + gamma_c + u_ip + N(0, sigma²_i)        one run
    theta_i ~ N(m_k, tau²), k with probability pi_k           candidates lie in up to 3 clusters
    m_k ~ N(mu, omega²), pi ~ Dirichlet(1)                    how clusters differ
    gamma_c ~ N(0, phi²)                                      what a seed does to all candidates
    u_ip ~ N(0, e_ip)                                         evaluation noise of a candidate
    delta_0 = 0, delta_1 ~ N(0, D)                            the plans' sequences differ in level
    1 / sigma²_i ~ chi²(d0) / (d0 s0²_i), log s0²_i = a + b x_i   as in `mptune.analysis.moderation`
    tau ~ half-Cauchy(s / 5), omega ~ half-Cauchy(s)          Gelman 2006, doi 10.1214/06-BA117A
    phi ~ half-Cauchy(s / 2)
    s² = typical sigma² + mean e

mu and a have flat priors; b and d0 have those of `moderation`. The spreads tau and omega are
integrated over instead of plugged in: an estimate is zero, or far too large, in half of all
searches with few candidates, and a probability that rests on it is then certain of noise. One
spread alone cannot describe a few good candidates that are close to each other and far from the
others: the distance of the others would say that the good ones differ, too.

All unknowns are drawn by a Gibbs sampler: tau on a grid with m and theta integrated out, the rest
from its conditional distributions.

Shape suffixes: B problems or chains, A candidates, C columns, P = 2 plans, K clusters, T spreads,
S slopes, F values of d0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import PRIOR_DEGREES, SLOPE_PRIOR, SLOPES

CLUSTERS = 3
"""Most clusters of candidates."""

WITHIN, BETWEEN, COMMON = 0.2, 1.0, 0.5
"""Scales of the half-Cauchy priors of tau / s, omega / s and phi / s."""

SPREADS = np.geomspace(0.01, 1e4, 49)
"""Grid of tau / s, omega / s and phi / s: from candidates that are equal to sizes and learning
rates far apart."""

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
    state = _Chains(seen, chains, np.random.default_rng(seed))
    kept_theta, kept_variance = [], []
    for sweep in range(BURN_IN + draws):
        state.draw_true_scores()
        state.draw_clusters()
        state.draw_evaluation()
        state.draw_seed_variances()
        state.draw_common_effects_of_seeds()
        if sweep >= BURN_IN:
            kept_theta.append(state.theta_BA)
            kept_variance.append(state.sigma2_BA + state.phi_B1**2)
    shape = draws * chains, *seen.run_AC.shape[:-1]
    return np.reshape(kept_theta, shape), np.reshape(kept_variance, shape)


class _Chains:
    """What was measured and the present draw of every unknown, in all chains."""

    def __init__(self, seen: MeasuredPoints, chains: int, rng: np.random.Generator) -> None:
        *leading, A, C = seen.run_AC.shape

        def tiled(value: Array, *last: int) -> Array:
            shape = (chains, *leading, *last)
            return np.array(np.broadcast_to(value, shape), dtype=np.float64).reshape(-1, *last)

        self.rng, self.can_A = rng, seen.is_candidate_A
        y_BAC, self.e_BAP = tiled(seen.run_AC, A, C), tiled(seen.evaluation_AP, A, 2)
        x_BA = tiled(seen.out_of_play_A, A)
        self.x_BA = x_BA - x_BA.mean(1, keepdims=True)
        self.has_BAC = np.isfinite(y_BAC)
        self.y_BAC = np.where(self.has_BAC, y_BAC, 0.0)
        self.plan_CP = (seen.plan_C[:, None] == np.arange(2)).astype(float)
        n_BAP = self.has_BAC @ self.plan_CP
        self.has_BAP, self.runs_BA = n_BAP > 0, n_BAP.sum(2)
        self.n_BAP = np.maximum(n_BAP, 1.0)
        self.shift_precision = 1 / seen.shift if seen.shift > 0 else np.inf
        counted_BAP = self.has_BAP & self.can_A[:, None]
        self.e_B1 = ((self.e_BAP * counted_BAP).sum((1, 2)) / counted_BAP.sum((1, 2)))[:, None]
        self._start()

    def _start(self) -> None:
        """At the variance within plans, and of the differences of those that are on both."""
        m_BAP, squares_BA = self._means_and_squares(self.y_BAC)
        B, A, C = self.y_BAC.shape
        first_BA = m_BAP[:, self.can_A, 0]
        # Runs that are equal to the last digit would make the seed variance zero.
        self.least_B1 = np.maximum(1e-18, 1e-7 * first_BA.var(1, keepdims=True))
        both_BA = self.has_BAP.sum(2) == 2
        change_BA = np.where(both_BA, m_BAP[:, :, 1] - m_BAP[:, :, 0], 0.0)
        centre_B1 = change_BA.sum(1, keepdims=True) / np.maximum(1, both_BA.sum(1, keepdims=True))
        squares_B = squares_BA.sum(1) + (both_BA * (change_BA - centre_B1) ** 2).sum(1) / 2
        degrees_B = (self.runs_BA - self.has_BAP.sum(2)).sum(1) + np.maximum(0, both_BA.sum(1) - 1)
        pooled_B1 = (squares_B / degrees_B)[:, None] + self.least_B1
        self.sigma2_BA = np.repeat(pooled_B1, A, axis=1)
        self.log_s0_B1, self.slope_B1 = np.log(pooled_B1), np.zeros((B, 1))
        self.d0_B1 = np.full((B, 1), 4.0)
        self.delta_B1, self.gamma_BC = np.zeros((B, 1)), np.zeros((B, C))
        self.omega_B1 = np.sqrt(pooled_B1) * BETWEEN
        self.phi_B1 = np.sqrt(pooled_B1) * COMMON
        # Two clusters, on both sides of the largest gap between two candidates.
        sorted_BA = np.sort(first_BA, 1)
        gap_BA = np.diff(sorted_BA, axis=1, append=sorted_BA[:, -1:])
        edge_B1 = np.take_along_axis(sorted_BA, gap_BA.argmax(1)[:, None], 1)
        self.in_BAK = _one_hot((first_BA > edge_B1) % CLUSTERS)

    def _means_and_squares(self, z_BAC: Array) -> tuple[Array, Array]:
        """Mean of the runs on each plan, and sum of squares around these."""
        mean_BAP = (z_BAC * self.has_BAC) @ self.plan_CP / self.n_BAP
        left_BAC = self.has_BAC * (z_BAC - mean_BAP @ self.plan_CP.T)
        return mean_BAP, (left_BAC**2).sum(2)

    def draw_true_scores(self) -> None:
        """tau with mu, m and theta integrated out, then these."""
        rng, can, B = self.rng, self.can_A, len(self.y_BAC)
        m_BAP, _ = self._means_and_squares(self.y_BAC - self.gamma_BC[:, None])
        m_BAP[:, :, 1] -= self.delta_B1
        self.w_BAP = self.has_BAP / (self.sigma2_BA[:, :, None] / self.n_BAP + self.e_BAP)
        w_BA = self.w_BAP.sum(2)
        y_BA = (self.w_BAP * m_BAP).sum(2) / w_BA
        self.w_BA, self.y_BA = w_BA[:, can], y_BA[:, can]

        tau_BT = _scale(self.log_s0_B1, self.e_B1) * SPREADS
        p_BTA = 1 / (tau_BT[:, :, None] ** 2 + 1 / self.w_BA[:, None])
        # Of an empty cluster, the precision is next to zero and the mean is multiplied by it.
        p_BTK = np.maximum(p_BTA @ self.in_BAK, 1e-200)
        y_BTK = p_BTA @ (self.y_BA[:, :, None] * self.in_BAK) / p_BTK
        far_BT = (p_BTA @ self.y_BA[:, :, None] ** 2)[:, :, 0] - (p_BTK * y_BTK**2).sum(2)
        q_BTK = 1 / (self.omega_B1[:, :, None] ** 2 + 1 / p_BTK)
        q_BT = q_BTK.sum(2)
        mu_BT = (q_BTK * y_BTK).sum(2) / q_BT
        far_BT += (q_BTK * (y_BTK - mu_BT[:, :, None]) ** 2).sum(2)
        log_w_BT = np.log(p_BTA).sum(2) + np.log(q_BTK / p_BTK).sum(2) - np.log(q_BT) - far_BT
        chosen_B = _choose(rng, log_w_BT / 2 + _log_prior(WITHIN))
        at_B = np.arange(B), chosen_B
        self.tau_B1, p_BK = tau_BT[at_B][:, None], p_BTK[at_B]
        self.mu_B1 = (mu_BT[at_B] + rng.standard_normal(B) / np.sqrt(q_BT[at_B]))[:, None]
        precision_BK = p_BK + 1 / self.omega_B1**2
        self.m_BK = (p_BK * y_BTK[at_B] + self.mu_B1 / self.omega_B1**2) / precision_BK
        self.m_BK += rng.standard_normal(p_BK.shape) / np.sqrt(precision_BK)
        centre_BA = y_BA.copy()
        centre_BA[:, can] = (self.in_BAK @ self.m_BK[:, :, None])[:, :, 0]
        keep_BA = np.where(can, w_BA * self.tau_B1**2 / (1 + w_BA * self.tau_B1**2), 1.0)
        self.theta_BA = centre_BA + keep_BA * (y_BA - centre_BA)
        self.theta_BA += np.sqrt(keep_BA / w_BA) * rng.standard_normal(w_BA.shape)

    def draw_clusters(self) -> None:
        """omega, pi, the centres of empty clusters, and which candidate is in which cluster."""
        rng, n_BK = self.rng, self.in_BAK.sum(1)
        omega_BT = _scale(self.log_s0_B1, self.e_B1) * SPREADS
        far_BK = np.where(n_BK, self.m_BK - self.mu_B1, 0.0)
        log_w_BT = -(far_BK**2).sum(1, keepdims=True) / (2 * omega_BT**2)
        log_w_BT -= (n_BK > 0).sum(1, keepdims=True) * np.log(omega_BT)
        chosen_B = _choose(rng, log_w_BT + _log_prior(BETWEEN))
        self.omega_B1 = np.take_along_axis(omega_BT, chosen_B[:, None], 1)
        new_BK = self.mu_B1 + self.omega_B1 * rng.standard_normal(n_BK.shape)
        self.m_BK = np.where(n_BK, self.m_BK, new_BK)
        log_pi_BK = np.log(rng.standard_gamma(1 + n_BK))
        variance_BA = self.tau_B1**2 + 1 / self.w_BA
        far_BAK = self.y_BA[:, :, None] - self.m_BK[:, None]
        log_w_BAK = log_pi_BK[:, None] - far_BAK**2 / (2 * variance_BA[:, :, None])
        chosen_I = _choose(rng, log_w_BAK.reshape(-1, CLUSTERS))
        self.in_BAK = _one_hot(chosen_I.reshape(self.y_BA.shape))

    def draw_evaluation(self) -> None:
        """The plans' difference in level, and each mean's part of evaluation."""
        rng, w_BA = self.rng, self.w_BAP[:, :, 1]
        m_BAP, self.squares_BA = self._means_and_squares(self.y_BAC - self.gamma_BC[:, None])
        weight_B1 = w_BA.sum(1, keepdims=True) + self.shift_precision
        self.delta_B1 = (w_BA * (m_BAP[:, :, 1] - self.theta_BA)).sum(1, keepdims=True) / weight_B1
        self.delta_B1 += rng.standard_normal(weight_B1.shape) / np.sqrt(weight_B1)
        m_BAP[:, :, 1] -= self.delta_B1
        r_BAP = self.has_BAP * (m_BAP - self.theta_BA[:, :, None])
        seeds_BAP = self.sigma2_BA[:, :, None] / self.n_BAP
        share_BAP = self.e_BAP / (seeds_BAP + self.e_BAP)
        self.u_BAP = share_BAP * r_BAP
        self.u_BAP += np.sqrt(share_BAP * seeds_BAP) * rng.standard_normal(r_BAP.shape)
        left_BAP = self.has_BAP * self.n_BAP * (r_BAP - self.u_BAP) ** 2
        self.squares_BA += left_BAP.sum(2) + self.runs_BA * self.least_B1

    def draw_seed_variances(self) -> None:
        """All by a common factor, then each, then what they have in common: b and d0 with a
        integrated out, then a."""
        rng, (B, A) = self.rng, self.runs_BA.shape
        factor_B = (self.squares_BA / self.sigma2_BA).sum(1) / rng.chisquare(self.runs_BA.sum(1))
        proposed_B1 = self.log_s0_B1 + np.log(factor_B)[:, None]
        self.log_s0_B1 = np.where(self._accepts(proposed_B1), proposed_B1, self.log_s0_B1)
        prior_BA = self.d0_B1 * np.exp(self.log_s0_B1 + self.slope_B1 * self.x_BA)
        self.sigma2_BA = (prior_BA + self.squares_BA) / rng.chisquare(self.d0_B1 + self.runs_BA)

        flat = bool(np.ptp(self.x_BA) == 0)
        slopes_S, prior_S = (np.zeros(1), np.ones(1)) if flat else (SLOPES, SLOPE_PRIOR)
        trend_BSA = np.exp(slopes_S[:, None] * self.x_BA[:, None])
        inverse_BS = (trend_BSA / self.sigma2_BA[:, None]).sum(2)
        log_w_BSF = np.log(prior_S)[:, None] + _log_variances(inverse_BS, self.sigma2_BA)
        s_B, f_B = np.divmod(_choose(rng, log_w_BSF.reshape(B, -1)), len(PRIOR_DEGREES))
        d0_B = PRIOR_DEGREES[f_B]
        proposed_B = rng.gamma(A * d0_B / 2) / (d0_B / 2 * inverse_BS[np.arange(B), s_B])
        proposed_B1 = np.log(proposed_B)[:, None]
        is_new_B1 = self._accepts(proposed_B1)
        self.log_s0_B1 = np.where(is_new_B1, proposed_B1, self.log_s0_B1)
        self.slope_B1 = np.where(is_new_B1, slopes_S[s_B][:, None], self.slope_B1)
        self.d0_B1 = np.where(is_new_B1, d0_B[:, None], self.d0_B1)

    def _accepts(self, log_s0_B1: Array) -> NDArray[np.bool_]:
        """Metropolis step for a, which is also in the priors of tau, omega and phi."""
        old_B1, new_B1 = (_scale(log_B1, self.e_B1) for log_B1 in (self.log_s0_B1, log_s0_B1))
        ratio_B1 = np.ones_like(old_B1)
        priors = (self.tau_B1, WITHIN), (self.omega_B1, BETWEEN), (self.phi_B1, COMMON)
        for spread_B1, scale in priors:
            ratio_B1 *= _half_cauchy(spread_B1, scale * new_B1)
            ratio_B1 /= _half_cauchy(spread_B1, scale * old_B1)
        return self.rng.random(ratio_B1.shape) < ratio_B1

    def draw_common_effects_of_seeds(self) -> None:
        """What seeds do to all candidates alike: each, the level that they share with theta, and
        their spread."""
        rng, (B, _, C) = self.rng, self.y_BAC.shape
        expected_BAP = self.theta_BA[:, :, None] + self.u_BAP
        expected_BAP[:, :, 1] += self.delta_B1
        left_BAC = self.y_BAC - expected_BAP @ self.plan_CP.T
        weight_BAC = self.has_BAC / self.sigma2_BA[:, :, None]
        precision_BC = weight_BAC.sum(1) + 1 / self.phi_B1**2
        gamma_BC = (weight_BAC * left_BAC).sum(1) / precision_BC
        gamma_BC += rng.standard_normal((B, C)) / np.sqrt(precision_BC)
        level_B1 = gamma_BC.mean(1, keepdims=True)
        level_B1 += self.phi_B1 / np.sqrt(C) * rng.standard_normal((B, 1))
        self.gamma_BC, self.theta_BA = gamma_BC - level_B1, self.theta_BA + level_B1
        phi_BT = _scale(self.log_s0_B1, self.e_B1) * SPREADS
        squares_B1 = (self.gamma_BC**2).sum(1, keepdims=True)
        log_w_BT = -C * np.log(phi_BT) - squares_B1 / (2 * phi_BT**2)
        chosen_B = _choose(rng, log_w_BT + _log_prior(COMMON))
        self.phi_B1 = np.take_along_axis(phi_BT, chosen_B[:, None], 1)


def _scale(log_s0_B1: Array, e_B1: Array) -> Array:
    """s, the unit of the priors of tau, omega and phi."""
    return np.sqrt(np.exp(log_s0_B1) + e_B1)


def _one_hot(cluster_BA: NDArray[np.int_]) -> Array:
    """1 at the cluster of each candidate, else 0, [B, A, K]."""
    return (cluster_BA[:, :, None] == np.arange(CLUSTERS)).astype(float)


def _log_prior(scale: float) -> Array:
    """Log probability of each of `SPREADS` under a half-Cauchy distribution."""
    return np.log(_half_cauchy(SPREADS, scale) * SPREADS)


def _half_cauchy(x: Array, scale: Array | float) -> Array:
    """Density of a half-Cauchy distribution, without its constant."""
    return scale / (scale**2 + x**2)


def _choose(rng: np.random.Generator, log_w_BK: Array) -> NDArray[np.int_]:
    """An index of each row, with the probabilities of these logarithms."""
    w_BK = np.exp(log_w_BK - log_w_BK.max(1, keepdims=True)).cumsum(1)
    return (w_BK < rng.random((len(w_BK), 1)) * w_BK[:, -1:]).sum(1)


def _log_variances(inverse_BS: Array, sigma2_BA: Array) -> Array:
    """Log density of the seed variances for each b and d0, a integrated out, [B, S, F].

    `inverse_BS` is the sum over A of exp(b x) / sigma².
    """
    from scipy.special import gammaln

    half_F, A = PRIOR_DEGREES / 2, sigma2_BA.shape[1]
    constant_F = A * (half_F * np.log(half_F) - gammaln(half_F)) + gammaln(A * half_F)
    log_inverse_B11 = -np.log(sigma2_BA).sum(1)[:, None, None]
    log_sum_BSF = np.log(half_F * inverse_BS[:, :, None])
    return constant_F + half_F * (log_inverse_B11 - A * log_sum_BSF)
