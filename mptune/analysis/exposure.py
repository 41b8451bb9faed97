"""The surrogate of a search: predicts a policy's score from what the policy exposes a model to.

A policy's exposure omega(M | s) = q w M says how much of the loss at mask count M it trains at
progress s, so policies of all kinds are points of one space. The exposure law predicts the score of
rate band g from the log exposure of that band and of its neighbours,

    e_g = log sum_s exp(lambda s) sum_M K_h(r_g, M / D) omega(M | s)      0 for uniform counts
    S_g = a_g + z context + (b + b_g) e_g + (c + c_g) e_g^2 + u + error_g

with normal priors that shrink what belongs to one band only. u is common to the bands of a trial: a
Gaussian process on the distribution functions of its exposure (early and late, squared exponential)
and on its context (Matern 5/2), and the noise of its training seed. What a trial's bands differ by
does not contain u, so inference is exact in two steps: the differences give a posterior of the
coefficients, which is the prior mean and a part of the covariance of a Gaussian process for the
means over bands, the scores. It is data-mixture regression with mask counts as domains (RegMix,
arXiv 2407.01492; Olmix, arXiv 2602.12237).

h, lambda, the error and the process's scales are not plugged in: draws from their priors are
weighted by the likelihood of the differences and of the scores.

All is in numpy: gpytorch would import torch (2 s of CPU, 300 MB) into the control plane, for
matrices of 1,000 rows that LAPACK factors in 0.03 s.

Shape suffixes: N trials or candidates, S cells of progress, F mask counts, G rate bands, Z columns
of context, P coefficients, L draws of the law's settings, J of the law's and the process's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from mptune.analysis.crossed import Array
from mptune.analysis.moderation import moderate, out_of_play
from mptune.spec.schema import build

CELLS, COUNTS, BANDS = 8, 40, 10
"""Of progress, and most mask counts and rate bands, that an exposure is computed at."""

LATE_CELLS = 2
"""Cells that are late: the last quarter of training."""

SAME = 0.02
"""Policies are the same if the mask rates of their exposures differ by less, on average over the
early or the late part of training."""

LOG_FROM = 4.0
"""A number of the context enters by its logarithm if it spans this factor."""

LEAK = 0.01
"""Share of the exposure that reaches every band: the log exposure of a band is at least its log."""

LAWS, PROCESSES = 64, 4
"""Draws of the law's settings, and draws of the process's settings for each of them."""

WEIGHED = 96
"""Most trials that draws are weighted by; the prediction itself is from all."""

EFFECTIVE = 1 / 3
"""Share of the differences that count: errors of neighbouring bands are alike."""

LEAST = 5.0
"""Draws whose log likelihood is this far below the best one's are left out."""

PRIOR_SD = {
    "level": 3.0,
    "a_g": 3.0,
    "z": 1.0,
    "b": 1.0,
    "b_g": 0.3,
    "c": 0.3,
    "c_g": 0.1,
}
"""Of the coefficients, in standard deviations of the scores."""


@dataclass(frozen=True, eq=False)
class Exposed:
    """A point of a search space, as a surrogate sees it.

    Attributes:
        omega_SF, idle: as in `Points`.
        context: all else that is the point's, by name.
    """

    omega_SF: Array
    idle: float
    context: Mapping[str, Any]

    @classmethod
    def of(cls, tree: Mapping[str, Any], length: int = COUNTS) -> Exposed:
        """The point of a spec's sections.

        Args:
            tree: `policy`, and whatever else may differ between points.
            length: positions of a sequence; above `COUNTS` the exposure is that of `COUNTS`.

        Raises:
            InputError, ValueError: there is no policy, or no such policy.
        """
        if "policy" not in tree:
            raise ValueError("what is searched has no `policy`")
        policy = json.dumps(tree["policy"], sort_keys=True)
        omega_SF, idle, outer = _exposure(policy, min(length, COUNTS))
        others = {key: value for key, value in tree.items() if key != "policy"}
        return cls(omega_SF, idle, dict(_leaves({**others, "policy": outer}, "")))


def model_context(model: Mapping[str, Any], parameters: int | None) -> dict[str, Any]:
    """What a surrogate is to know of a model.

    Width, depth and heads are in its number of parameters; how many layers are frozen is not.
    """
    others = {k: v for k, v in model.items() if k == "freeze" or not isinstance(v, int)}
    return {**others, "size": parameters}


@lru_cache(maxsize=256)  # of one decision's candidates; those that were run are kept elsewhere
def _exposure(policy: str, length: int) -> tuple[Array, float, dict[str, Any]]:
    values = json.loads(policy)
    law = build("policy", values)
    cells = (np.arange(CELLS) + 0.5) / CELLS
    omega_SF = length * np.stack([law.omega_at(length, float(s)) for s in cells])
    return omega_SF, out_of_play(values, length), law.outer()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The plain values inside mappings and sequences, by dotted name."""
    parts = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    if not isinstance(parts, Mapping):
        yield name, value
        return
    for key, part in parts.items():
        yield from _leaves(part, f"{name}.{key}")


def differ(points: Sequence[Exposed]) -> bool:
    """Whether the policies of the points do."""
    outer = [{k: v for k, v in p.context.items() if k.startswith(".policy.")} for p in points]
    return any(o != outer[0] for o in outer) or any(
        not np.allclose(p.omega_SF, points[0].omega_SF) for p in points
    )


def _columns(contexts: Sequence[Mapping[str, Any]]) -> Array:
    """Contexts as columns from -1 to 1, [N, Z]: of what differs between them only.

    A number that spans a factor of `LOG_FROM` enters by its logarithm; a choice has a column for
    each of its options. A number that a point does not have is in the middle.
    """
    columns: list[Array] = []
    for name in sorted({name for context in contexts for name in context}):
        values = [context.get(name) for context in contexts]
        numbers = [v for v in values if v is not None]
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
            options = sorted({str(v) for v in values})
            found = [[1.0 if str(v) == o else -1.0 for v in values] for o in options[1:]]
            columns += [np.array(column) for column in found]
        elif numbers and min(numbers) < max(numbers):
            low, high = min(numbers), max(numbers)
            numbers_N = np.array([np.nan if v is None else float(v) for v in values])
            if low > 0 and high >= LOG_FROM * low:
                numbers_N, low, high = np.log(numbers_N), np.log(low), np.log(high)
            columns.append(np.nan_to_num(2 * (numbers_N - low) / (high - low) - 1))
    return np.stack(columns, axis=1) if columns else np.zeros((len(contexts), 0))


@dataclass(frozen=True, eq=False)
class Points:
    """Policies with their context, as a surrogate sees them.

    Attributes:
        omega_NSF: exposure by progress and mask count; 1 everywhere for uniform counts.
        idle_N: share of the mask counts that are left out late (`moderation.out_of_play`).
        context_NZ: size, learning rate and whatever else is searched, each from -1 to 1.
    """

    omega_NSF: Array
    idle_N: Array
    context_NZ: Array

    def __len__(self) -> int:
        return len(self.omega_NSF)

    def take(self, which: Any) -> Points:
        """The points with these indices."""
        return Points(self.omega_NSF[which], self.idle_N[which], self.context_NZ[which])

    @classmethod
    def of(cls, points: Sequence[Exposed]) -> Points:
        """Points of one space, with columns for what their contexts differ by."""
        return cls(
            np.stack([p.omega_SF for p in points]),
            np.array([p.idle for p in points]),
            _columns([p.context for p in points]),
        )

    @cached_property
    def cdfs(self) -> Array:
        """Distribution functions of the mask rate's exposure: [:, 0] early, [:, 1] late."""
        late_N2F = np.stack(
            [
                self.omega_NSF[:, :-LATE_CELLS].mean(1),
                self.omega_NSF[:, -LATE_CELLS:].mean(1),
            ],
            axis=1,
        )
        total_N2 = np.maximum(late_N2F.sum(2), 1e-12)
        return np.cumsum(late_N2F, axis=2) / total_N2[..., None]

    def log_exposure(self, h: float | Array, recency: float | Array) -> Array:
        """e_g, [..., N, G]: the log exposure of each band, its neighbours' and late ones included.

        `h` and `recency` are numbers, or arrays of one shape.
        """
        cells, counts = self.omega_NSF.shape[1:]
        weight_S = np.exp(np.multiply.outer(recency, (np.arange(cells) + 0.5) / cells))
        weight_S /= weight_S.sum(-1, keepdims=True)
        rate_F, rate_G = np.arange(1, counts + 1) / counts, (np.arange(BANDS) + 0.5) / BANDS
        kernel_FG = np.exp(-np.abs(rate_F[:, None] - rate_G) / np.asarray(h)[..., None, None])
        kernel_FG /= kernel_FG.sum(-2, keepdims=True)
        omega_NF = np.tensordot(weight_S, self.omega_NSF, axes=(-1, 1))
        return np.log(LEAK + (1 - LEAK) * omega_NF @ kernel_FG)


def distances(points: Points, others: Points) -> Array:
    """[N, N']: mean difference of the mask rates of two exposures, early or late, the larger."""
    counts = points.omega_NSF.shape[2]
    apart_NN = np.zeros((len(points), len(others)))
    for row, cdfs_2F in zip(apart_NN, points.cdfs, strict=True):
        row[:] = np.abs(others.cdfs - cdfs_2F).sum(2).max(1) / counts
    return apart_NN


def same(points: Points, others: Points) -> NDArray[np.bool_]:
    """[N, N']: whether two points differ by less than `SAME` in exposure and in each context."""
    context_NN = np.abs(points.context_NZ[:, None] - others.context_NZ).max(2, initial=0.0)
    return (distances(points, others) <= SAME) & (context_NN <= 2 * SAME)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What trials have found, in the unit of the score (higher is better).

    Attributes:
        score_N: nats per token.
        curve_NG: score of each band, NaN in the rows of trials that have none.
        extra_N: variance of the score besides the noise of its seed.
        seed_N: number of the training seed; trials of one seed have a part of its noise in common.
    """

    points: Points
    score_N: Array
    curve_NG: Array
    extra_N: Array
    seed_N: NDArray[np.int64]

    def take(self, which: Any) -> Evidence:
        """The trials with these indices."""
        parts = (self.score_N, self.curve_NG, self.extra_N, self.seed_N)
        return Evidence(self.points.take(which), *(part[which] for part in parts))

    def canonical(self) -> Evidence:
        """The same trials in an order that depends on what they are, not on when they ran."""
        points = self.points
        keys = [
            self.seed_N,
            self.score_N,
            *points.context_NZ.T,
            *points.cdfs.reshape(len(points), -1).T,
        ]
        return self.take(np.lexsort(keys))

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """A number for each policy and context, of each trial."""
        rounded = np.round(self.points.cdfs.reshape(len(self.points), -1) + 1e-6, 2)
        keys = np.hstack([rounded, self.points.context_NZ])
        return np.unique(keys, axis=0, return_inverse=True)[1]

    @cached_property
    def shapes(self) -> Array:
        """What the known curves differ by besides their means, [N or fewer, G]."""
        curve_NG = self.curve_NG[np.isfinite(self.curve_NG).all(1)]
        found_NG = curve_NG - curve_NG.mean(1, keepdims=True)
        return found_NG - found_NG.mean(0) if len(found_NG) else found_NG

    @cached_property
    def scale(self) -> float:
        """Standard deviation of the policies' mean scores, 1 if they differ by rounding only.

        A hundredth of what curves differ by at least, else the matrices were singular.
        """
        sums_A, count_A = np.bincount(self.numbers, self.score_N), np.bincount(self.numbers)
        found = float(np.std(sums_A / count_A))
        if len(self.shapes):
            found = max(found, 0.01 * float(self.shapes.std()))
        return found if found > 1e-9 * float(np.abs(self.score_N).max()) else 1.0

    @cached_property
    def relative_noise(self) -> Array:
        """Variance over training seeds of each trial's policy, relative to their mean.

        Moderated (`moderation.moderate`) from the trials of one policy and context; without any
        repeated one it follows from the share of idle counts alone.
        """
        points, idle_K = self.points, np.linspace(0.0, 1.0, 11)
        keys_N = self.numbers
        count_A = np.bincount(keys_N)
        mean_A = np.bincount(keys_N, self.score_N) / count_A
        squares_A = np.bincount(keys_N, (self.score_N - mean_A[keys_N]) ** 2)
        idle_A = np.bincount(keys_N, points.idle_N) / count_A
        known_A = (count_A > 1) & (squares_A > 0)
        if known_A.any():
            degrees_A = count_A[known_A] - 1.0
            variances = moderate(
                np.append(squares_A[known_A] / degrees_A, np.zeros(len(idle_K))),
                np.append(degrees_A, np.zeros(len(idle_K))),
                np.append(idle_A[known_A], idle_K),
            ).variance_A
            variance_A = np.interp(idle_A, idle_K, variances[-len(idle_K) :])
            variance_A[known_A] = variances[: -len(idle_K)]
        else:
            variance_A = np.exp(2 * idle_A)
        return variance_A[keys_N] / variance_A[keys_N].mean()

    def noise_of(self, settings: Settings) -> Array:
        """Covariance of the scores around their policies' [N, N]."""
        own_N = (settings.noise * self.scale) ** 2 * self.relative_noise + self.extra_N
        shared_NN = self.seed_N[:, None] == self.seed_N
        return np.diag(own_N) + (settings.common * self.scale) ** 2 * shared_NN


@dataclass(frozen=True)
class Settings:
    """One draw of what the surrogate does not know.

    Attributes:
        h: reach of exposure over the mask rate.
        recency: lambda; training's end counts exp(lambda) times its beginning.
        error: standard deviation of a band's score around the law.
        process: standard deviation of the Gaussian process.
        length_omega: its length scale over exposures, as a root-mean-square of cdfs.
        length_context: its length scale over the context.
        noise: standard deviation over training seeds of the mean policy, all else being equal.
        common: standard deviation over seeds of what all trials of a seed have in common.
    """

    h: float
    recency: float
    error: float
    process: float
    length_omega: float
    length_context: float
    noise: float
    common: float

    @classmethod
    def draws(cls) -> list[list[Settings]]:
        """The same draws for every search, [L][J / L]; standard deviations relative to the scores'.

        Each setting is stratified: its draws are in the middles of equal shares of its prior.
        """
        rng = np.random.default_rng(0)

        def spread(low: float, high: float, count: int) -> Array:
            share = (rng.permutation(count) + 0.5) / count
            return low * (high / low) ** share

        h_L, recency_L, error_L = (
            spread(low, high, LAWS) for low, high in ((0.03, 0.6), (1.0, 10.0), (0.03, 1.0))
        )
        process_5J = [
            spread(low, high, LAWS * PROCESSES)
            for low, high in ((0.05, 1.5), (0.05, 0.6), (0.3, 4.0), (0.02, 1.0), (0.02, 2.0))
        ]
        law_L3 = np.stack([h_L, recency_L - 1, error_L], axis=1)
        process_LJ5 = np.stack(process_5J, axis=1).reshape(LAWS, PROCESSES, -1)
        return [
            [cls(*law_3, *process_5) for process_5 in process_J5.tolist()]
            for law_3, process_J5 in zip(law_L3.tolist(), process_LJ5, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Laws:
    """The exposure law at draws of its settings: normal distributions of its coefficients.

    Attributes:
        settings: [L].
        mean_LP, root_LPP: coefficients are mean + root.T @ standard normals.
        log_likelihood_L: of the differences between bands.
    """

    settings: Sequence[Settings]
    mean_LP: Array
    root_LPP: Array
    log_likelihood_L: Array

    @classmethod
    def of(cls, evidence: Evidence, settings: Sequence[Settings]) -> Laws:
        """The coefficients given the differences between bands; the prior where there are none."""
        known_N = np.isfinite(evidence.curve_NG).all(1)
        left_NG, count = evidence.shapes, len(settings)
        design_LNGP, prior_P = design(evidence.points.take(known_N), settings)
        if not known_N.any():
            root_PP = np.diag(evidence.scale * prior_P)
            root_LPP = np.repeat(root_PP[None], count, axis=0)
            return cls(settings, np.zeros((count, len(prior_P))), root_LPP, np.zeros(count))
        # Equal curves would leave no error at all.
        spread = max(float(left_NG.std()), 0.01 * evidence.scale)
        prior_P = prior_P * max(spread, evidence.scale)
        rows_LRP = design_LNGP - design_LNGP.mean(2, keepdims=True)
        rows_LRP = rows_LRP.reshape(count, -1, len(prior_P))
        variance_L = np.array([(s.error * spread) ** 2 / EFFECTIVE for s in settings])
        squares_LPP = rows_LRP.transpose(0, 2, 1) @ rows_LRP / variance_L[:, None, None]
        factor_LPP = np.linalg.cholesky(squares_LPP + np.diag(prior_P**-2.0))
        root_LPP = np.linalg.inv(factor_LPP)
        product_LP = left_NG.ravel() @ rows_LRP / variance_L[:, None]
        whitened_LP = (root_LPP @ product_LP[..., None])[..., 0]
        squares_L = (left_NG**2).sum() / variance_L - (whitened_LP**2).sum(1)
        logs_LP = np.log(np.diagonal(factor_LPP, axis1=1, axis2=2))
        volume_L = 2 * (logs_LP.sum(1) + np.log(prior_P).sum())
        weight = EFFECTIVE * (left_NG.size - len(left_NG))
        likelihood_L = -0.5 * (squares_L + volume_L + weight * np.log(variance_L))
        mean_LP = (whitened_LP[:, None] @ root_LPP)[:, 0]
        return cls(settings, mean_LP, root_LPP, likelihood_L)

    def of_scores(self, points: Points) -> tuple[Array, Array]:
        """The law's mean score of each point, [L, N], and its root covariance, [L, N, P]."""
        mean_LNP = design(points, self.settings)[0].mean(2)
        mean_LN = (mean_LNP @ self.mean_LP[..., None])[..., 0]
        return mean_LN, mean_LNP @ self.root_LPP.transpose(0, 2, 1)


def design(points: Points, settings: Sequence[Settings]) -> tuple[Array, Array]:
    """Columns of the law, [L, N, G, P], and the prior SDs of its coefficients, [P]."""
    h_L, recency_L = (np.array([getattr(s, name) for s in settings]) for name in ("h", "recency"))
    e_LNG1 = points.log_exposure(h_L, recency_L)[..., None]
    shape = e_LNG1.shape[:-1]
    own_LNGG = np.broadcast_to(np.eye(BANDS), (*shape, BANDS))
    context_NZ = points.context_NZ
    columns = {
        "level": np.ones((*shape, 1)),
        "a_g": own_LNGG,
        "z": np.broadcast_to(context_NZ[:, None], (*shape, context_NZ.shape[1])),
        "b": e_LNG1,
        "b_g": own_LNGG * e_LNG1,
        "c": e_LNG1**2,
        "c_g": own_LNGG * e_LNG1**2,
    }
    prior_P = np.concatenate([np.full(x.shape[3], PRIOR_SD[key]) for key, x in columns.items()])
    return np.concatenate(list(columns.values()), axis=3), prior_P


@dataclass(frozen=True, eq=False)
class Surrogate:
    """What is known of the scores of all policies, given the trials so far.

    Attributes:
        evidence: the trials, in canonical order.
        weights: of each draw of the settings that matters; they sum to 1.
    """

    evidence: Evidence
    weights: Mapping[Settings, float]

    @classmethod
    def of(cls, evidence: Evidence) -> Surrogate:
        """Weigh the draws of the settings by the trials, whose order does not matter."""
        evidence = evidence.canonical()
        n = len(evidence.score_N)
        part = evidence.take(np.unique(np.linspace(0, n - 1, min(n, WEIGHED)).round().astype(int)))
        apart = _apart(part.points, part.points)
        draws = Settings.draws()
        laws = Laws.of(part, [law[0] for law in draws])
        mean_LN, root_LNP = laws.of_scores(part.points)
        left_LN1 = (part.score_N - part.score_N.mean() - mean_LN)[..., None]
        law_LNN = root_LNP @ root_LNP.transpose(0, 2, 1)
        likelihoods: dict[Settings, float] = {}
        for k in range(PROCESSES):
            chosen = [law[k] for law in draws]
            total_LNN = law_LNN + np.stack(
                [part.scale**2 * _kernel(*apart, s) + part.noise_of(s) for s in chosen]
            )
            factor_LNN = np.linalg.cholesky(total_LNN)
            white_LN = np.linalg.solve(factor_LNN, left_LN1)[..., 0]
            volume_L = np.log(np.diagonal(factor_LNN, axis1=1, axis2=2)).sum(1)
            found_L = laws.log_likelihood_L - 0.5 * (white_LN**2).sum(1) - volume_L
            likelihoods |= dict(zip(chosen, found_L.tolist(), strict=True))
        top = max(likelihoods.values())
        shares = {d: float(np.exp(v - top)) for d, v in likelihoods.items() if v > top - LEAST}
        return cls(evidence, {d: v / sum(shares.values()) for d, v in shares.items()})

    def posterior(self, points: Points, settings: Settings) -> tuple[Array, Array]:
        """Mean [K] and covariance [K, K] of the scores of K points at one draw of the settings."""
        evidence, laws = self.evidence, Laws.of(self.evidence, [settings])
        ((mean_N,), (root_NP,)) = laws.of_scores(evidence.points)
        ((mean_K,), (root_KP,)) = laws.of_scores(points)
        level, variance = evidence.score_N.mean(), evidence.scale**2

        def covariance(one: Points, other: Points, ones_P: Array, others_P: Array) -> Array:
            return ones_P @ others_P.T + variance * _kernel(*_apart(one, other), settings)

        total_NN = covariance(evidence.points, evidence.points, root_NP, root_NP)
        factor_NN = cholesky(total_NN + evidence.noise_of(settings), lower=True)
        shared_NK = covariance(evidence.points, points, root_NP, root_KP)
        white_NK = solve_triangular(factor_NN, shared_NK, lower=True)
        white_N = solve_triangular(factor_NN, evidence.score_N - level - mean_N, lower=True)
        prior_KK = covariance(points, points, root_KP, root_KP)
        return level + mean_K + white_NK.T @ white_N, prior_KK - white_NK.T @ white_NK

    def predict(self, points: Points) -> tuple[Array, Array]:
        """Mean and standard deviation of the score of each point, over all draws."""
        parts = [(w, *self.posterior(points, d)) for d, w in self.weights.items()]
        mean_K: Array = np.sum([w * m for w, m, _ in parts], axis=0)
        square_K = np.sum([w * (np.diag(v) + (m - mean_K) ** 2) for w, m, v in parts], axis=0)
        return mean_K, np.sqrt(np.maximum(square_K, 0.0))

    def draw(self, points: Points, pending: int, rng: np.random.Generator) -> tuple[Array, float]:
        """Scores as they may truly be, [K], and the best trial's standard deviation over seeds.

        Args:
            points: what may be run next.
            pending: number of points, the last ones, that are running: the draw is as certain as if
                they had found what is expected of them, so that others are asked meanwhile.
        """
        found = list(self.weights)
        settings = found[rng.choice(len(found), p=list(self.weights.values()))]
        mean_K, covariance_KK = self.posterior(points, settings)
        noise = (settings.noise * self.evidence.scale) ** 2
        if pending:
            running_KK = covariance_KK[-pending:, -pending:] + noise * np.eye(pending)
            shared = covariance_KK[-pending:]
            covariance_KK = covariance_KK - shared.T @ np.linalg.solve(running_KK, shared)
        jitter = 1e-8 * self.evidence.scale**2 * np.eye(len(mean_K))
        root_KK = cholesky(covariance_KK + jitter, lower=True)
        best = int(np.argmax(self.evidence.score_N))
        seed_sd = float(np.sqrt(noise * self.evidence.relative_noise[best]))
        return mean_K + root_KK @ rng.standard_normal(len(mean_K)), seed_sd


def _apart(points: Points, others: Points) -> tuple[Array, Array]:
    """[N, N']: mean squared difference of the cdfs, and distance of the contexts."""
    one, other = (p.cdfs.reshape(len(p), -1) for p in (points, others))
    return _squares(one, other) / one.shape[1], np.sqrt(
        _squares(points.context_NZ, others.context_NZ)
    )


def _squares(one_NK: Array, other_NK: Array) -> Array:
    inner = one_NK @ other_NK.T
    total = (one_NK**2).sum(1)[:, None] + (other_NK**2).sum(1)
    return np.asarray(np.maximum(total - 2 * inner, 0.0))


def _kernel(squares: Array, context: Array, settings: Settings) -> Array:
    """Squared exponential over exposures times Matern 5/2 over the context."""
    far = np.sqrt(5.0) * context / settings.length_context
    matern = (1 + far + far**2 / 3) * np.exp(-far)
    found: Array = np.exp(-squares / (2 * settings.length_omega**2)) * matern
    return settings.process**2 * found
