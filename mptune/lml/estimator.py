"""The accumulated masked-prediction estimate of log p(x), with a standard error on every number.

    log p(x) = sum_{M=1..D} S(x; M),
    S(x; M)  = E over uniform masks of size M of (1/M) sum_{j in mask} log p(x_j | x_rest)

(Moreno-Munoz, Recasens, Hauberg, NeurIPS 2023, arXiv 2306.00520, Proposition 1.) The identity is
exact when all conditionals come from one joint p. For any other masked model the sum is
E over orders of log q_order(x) <= log E over orders of q_order(x): a lower bound, and a code length
(arXiv 2110.02037).

Notation and shape suffixes: N sequences, n of them scored, D positions, k forwards per sequence
(bands), B rows of a batch, C covariates; M mask count, w its weight. Everything is in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mptune.lml.covariates import Covariates, TokenCovariates, position_controls
from mptune.lml.groups import (
    MIN_GROUPS,
    BoolArray,
    FloatArray,
    IntArray,
    Tails,
    group_standard_error,
    tails,
)
from mptune.lml.plan import DEFAULT_VARIANCE, LMLPlan, VarianceLaw
from mptune.lml.regression import Observations, Reduction, fit_residual_variance, reduce_variance

LogProb = Callable[[NDArray[Any], BoolArray], Any]
"""(tokens_BD, mask_BD) -> log p of the true value at masked positions [B, D], numpy or torch."""

Scope = Literal["population", "fixed"]
"""What an interval is of: new groups of sequences, or exactly the scored sequences."""

_CURVE_BINS = 20
_CHUNK = 256


class NonFiniteLogProb(ValueError):
    """A model gave -inf, +inf or NaN as the log probability of a masked position."""


@dataclass(frozen=True, eq=False)
class MPTCurve:
    """Masked-prediction score against mask rate, in bins of about equally many forwards [bins].

    ``mean_log_prob`` is the raw mean of S in the bin with its standard error ``se`` (NaN for a
    single forward), ``smooth`` the fitted S at ``mask_rate`` (NaN where too few forwards for a
    fit); all three in nats per masked position. Their area over the mask rate is the score per
    position. ``mask_rate`` and ``mask_count`` are means over the bin.
    """

    mask_rate: FloatArray
    mask_count: FloatArray
    mean_log_prob: FloatArray
    se: FloatArray
    smooth: FloatArray
    forwards: IntArray
    variance_share: FloatArray
    """Share of the squared residuals of z that these forwards have; sums to 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LMLEstimate:
    """Accumulated LML estimate over n scored sequences; nats."""

    nats_per_sequence: float
    nats_per_position: float
    """Total nats over total observed positions."""
    se_population: float
    """Standard error of nats_per_sequence for new groups of sequences; NaN below `MIN_GROUPS`."""
    se_fixed: float
    """Standard error of nats_per_sequence for exactly these sequences; NaN for k = 1."""
    per_sequence: FloatArray
    """Row means of z [n]: paired with those of another model scored on the same plan."""
    sequence_index: IntArray
    """Which sequence of the table each entry of per_sequence is [n]."""
    positions: IntArray
    """Observed positions of each scored sequence [n]."""
    groups: IntArray
    """Number of the group of each scored sequence [n]; without groups each is one."""
    curve: MPTCurve
    residual_variance: VarianceLaw
    """Fitted (a, b, c): pass to LMLPlan.make, with another seed, for a sharper plan."""
    n_sequences: int
    forwards_used: int
    effective_sample_size: float
    """Forwards with uniform M and nothing else that would give the same error between groups."""
    plan_hash: str
    degrees_of_freedom: dict[str, float]

    @property
    def n_groups(self) -> int:
        """Number of groups, G."""
        return np.unique(self.groups).size

    @property
    def scope(self) -> Scope:
        """What the score is claimed for: the population, or with few groups this set only."""
        return "population" if self.n_groups >= MIN_GROUPS else "fixed"

    @cached_property
    def tails(self) -> Tails:
        """How far the score depends on few of the groups."""
        return tails(self.per_sequence, self.groups)

    def per(self, sizes: ArrayLike) -> tuple[float, float, float]:
        """Score per unit of ``sizes`` [n] (tokens, bytes), its standard error, and their df.

        The error is that of a ratio of totals, in the estimate's `scope`: sequences of another
        length have another score, but not for that another score per token.
        """
        total = float(np.sum(sizes))
        score = float(self.per_sequence.sum()) / total
        if self.scope == "fixed":
            error = self.se_fixed * self.n_sequences / total
            return score, error, self.degrees_of_freedom["fixed"]
        return score, *group_standard_error(self.per_sequence, self.groups, sizes)

    def interval(self, level: float = 0.95, kind: Scope | None = None) -> tuple[float, float]:
        """Two-sided Student t interval of nats_per_sequence; NaN where its error is undefined.

        ``population``: for new groups of sequences like these, G - 1 degrees of freedom, and fewer
        where the sizes of groups differ. ``fixed``: for exactly these sequences, only the masks
        are random, n (k - 1) degrees of freedom. The default is `scope`.
        """
        from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be between 0 and 1; it is {level}")
        kind = kind or self.scope
        error = {"population": self.se_population, "fixed": self.se_fixed}[kind]
        if np.isnan(error):
            return float("nan"), float("nan")
        half = error * float(stdtrit(self.degrees_of_freedom[kind], (1 + level) / 2))
        return self.nats_per_sequence - half, self.nats_per_sequence + half


def estimate_lml(
    log_prob: LogProb,
    tokens: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    forwards: int = 2,
    seed: int = 0,
    plan: LMLPlan | None = None,
    batch_size: int = 64,
    covariates: Covariates | None = None,
    groups: ArrayLike | None = None,
) -> LMLEstimate:
    """Score a masked model on ``tokens`` [N, D] (integer ids or real values), in nats.

    ``log_prob(tokens_BD, mask_BD)`` returns [B, D]: at masked positions, log p of the true value
    given the unmasked ones; anything elsewhere. ``observed`` [N, D] tells what may be masked and
    is scored (default: all); a sequence with no observed position is left out. ``groups`` [N]
    labels the document, subject or site of each sequence; without it they count as independent.
    ``plan`` replaces ``observed``, ``groups``, ``forwards`` and ``seed``. ``covariates`` sharpen
    the estimate, see :class:`TokenCovariates`.

    Raises NonFiniteLogProb where the model gives a value that is not finite, ValueError for shapes
    that do not match and for data without an observed position.

    Example:
        >>> import numpy as np
        >>> tokens = np.random.default_rng(0).integers(0, 4, (64, 32))
        >>> log_prob = lambda tokens_BD, mask_BD: np.full(tokens_BD.shape, np.log(0.25))
        >>> estimate = estimate_lml(log_prob, tokens)
        >>> round(estimate.nats_per_sequence, 6), estimate.forwards_used  # 32 ln(1/4), exactly
        (-44.36142, 128)
    """
    tokens_ND = np.asarray(tokens)
    if plan is None:
        shown = np.ones(tokens_ND.shape, np.bool_) if observed is None else np.asarray(observed)
        plan = LMLPlan.make(shown, forwards=forwards, seed=seed, groups=groups)
    _check_table(plan, tokens_ND, observed)
    sums_Nk = forward_sums(log_prob, tokens_ND, plan, batch_size)
    return estimate_from_sums(plan, sums_Nk, tokens_ND, observed, covariates=covariates)


def as_float64(values: Any) -> FloatArray:
    """A numpy array of float64, from numpy or torch of any dtype and device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)


def masked_sums(log_prob_BD: Any, mask_BD: ArrayLike) -> FloatArray:
    """Sum log p over each mask [B], in float64; numpy or torch of any dtype and device."""
    values_BD, mask = as_float64(log_prob_BD), np.asarray(mask_BD, np.bool_)
    if values_BD.shape != mask.shape:
        raise ValueError(
            f"log_prob must return one value per position, shape {mask.shape}; "
            f"it returned {values_BD.shape}"
        )
    return np.where(mask, values_BD, 0.0).sum(axis=1)


def check_finite(plan: LMLPlan, rows: IntArray, bands: IntArray, sums_B: FloatArray) -> None:
    """Raise NonFiniteLogProb, naming the first of the forwards whose sum is not finite."""
    bad = np.flatnonzero(~np.isfinite(sums_B))
    if bad.size:
        row, band = int(rows[bad[0]]), int(bands[bad[0]])
        raise NonFiniteLogProb(
            f"the model's log p at the masked positions of sequence {row} sums to "
            f"{sums_B[bad[0]]} with M={plan.counts_Nk[row, band]} of {plan.lengths[row]} positions "
            f"masked (band {band}; {bad.size} of {sums_B.size} forwards like it); a model must "
            "give every value that occurs a positive probability"
        )


def estimate_from_sums(
    plan: LMLPlan,
    sums_Nk: ArrayLike,
    tokens: ArrayLike | None = None,
    observed: ArrayLike | None = None,
    *,
    covariates: Covariates | None = None,
) -> LMLEstimate:
    """The estimate from ``sums_Nk[i, b]`` = sum over the mask of forward (i, b) of log p, nats.

    The sums may come from any ranks and batches (see :meth:`LMLPlan.batches`,
    :func:`masked_sums`). Rows of skipped sequences are ignored. ``tokens`` [N, D] is needed only
    with ``covariates``; ``observed``, if given, must be that of the plan.
    """
    sums = np.asarray(sums_Nk, np.float64)
    if sums.shape != plan.counts_Nk.shape:
        raise ValueError(f"sums must be [N, k] = {plan.counts_Nk.shape}; they are {sums.shape}")
    rows = np.repeat(plan.kept, plan.forwards)
    bands = np.tile(np.arange(plan.forwards), plan.kept.size)
    check_finite(plan, rows, bands, sums[rows, bands])
    if covariates is not None:
        if tokens is None:
            raise ValueError("covariates need the tokens that were scored: pass tokens")
        _check_table(plan, np.asarray(tokens), observed)
    data = observations(plan, sums, tokens, covariates)
    return summarise(data, plan.kept, plan.groups_N[plan.kept], plan.hash)


def forward_sums(
    log_prob: LogProb, tokens_ND: NDArray[Any], plan: LMLPlan, batch_size: int
) -> FloatArray:
    """Sum of log p over the mask of every forward of the plan [N, k], nats, in float64.

    Raises NonFiniteLogProb where a sum is not finite.
    """
    sums_Nk = np.zeros(plan.counts_Nk.shape)
    for rows, bands in plan.batches(batch_size):
        mask_BD = plan.masks(rows, bands)
        sums_B = masked_sums(log_prob(tokens_ND[rows], mask_BD), mask_BD)
        check_finite(plan, rows, bands, sums_B)
        sums_Nk[rows, bands] = sums_B
    return sums_Nk


def _check_table(plan: LMLPlan, tokens_ND: NDArray[Any], observed: ArrayLike | None) -> None:
    if tokens_ND.shape != plan.observed_ND.shape:
        raise ValueError(
            f"tokens have shape {tokens_ND.shape}, the plan was made for {plan.observed_ND.shape}"
        )
    if observed is not None and not np.array_equal(np.asarray(observed), plan.observed_ND):
        raise ValueError(
            "observed differs from the observed mask of the plan: scores on it would not be "
            "comparable; make a plan for this data"
        )


def _guesses(
    plan: LMLPlan, tokens_ND: NDArray[Any], covariates: Covariates
) -> tuple[FloatArray, FloatArray]:
    """Control variates c [n, k, C] and levels g [n, C], a chunk of sequences at a time."""
    parts = []
    for start in range(0, plan.kept.size, _CHUNK):
        rows_R = plan.kept[start : start + _CHUNK]
        bands = np.tile(np.arange(plan.forwards), rows_R.size)
        masks = plan.masks(np.repeat(rows_R, plan.forwards), bands)
        masks_RkD = masks.reshape(rows_R.size, plan.forwards, -1)
        parts.append(covariates.controls(tokens_ND[rows_R], plan.observed_ND[rows_R], masks_RkD))
    controls, levels = zip(*parts, strict=True)
    return np.concatenate(controls), np.concatenate(levels)


def observations(
    plan: LMLPlan,
    sums_Nk: FloatArray,
    tokens: ArrayLike | None = None,
    covariates: Covariates | None = None,
) -> Observations:
    """The forwards of the plan's kept sequences, with their control variates."""
    lengths_n, counts_nk = plan.lengths[plan.kept], plan.counts_Nk[plan.kept]
    controls_nkC, levels_nC = np.empty((*counts_nk.shape, 0)), np.empty((len(lengths_n), 0))
    if covariates is not None:
        controls_nkC, levels_nC = _guesses(plan, np.asarray(tokens), covariates)
    return Observations(
        y_nk=lengths_n[:, None] / counts_nk * sums_Nk[plan.kept],
        counts_nk=counts_nk,
        weights_nk=plan.weights_Nk[plan.kept],
        lengths_n=lengths_n,
        controls=controls_nkC,
        levels=levels_nC,
    )


def summarise(
    data: Observations, sequence_index: IntArray, groups_n: IntArray, plan_hash: str
) -> LMLEstimate:
    """The estimate from observations of the sequences ``sequence_index`` [n] of a table."""
    reduction = reduce_variance(data)
    z_nk = reduction.z_nk
    n, k = z_nk.shape
    row_means_n = z_nk.mean(axis=1)
    error, df = group_standard_error(row_means_n, groups_n)
    claimed = np.unique(groups_n).size >= MIN_GROUPS
    # Variance of y at uniform M, from forwards drawn with weight w.
    first = float((data.weights_nk * data.y_nk).mean())
    naive_variance = float((data.weights_nk * data.y_nk**2).mean()) - first**2
    law = DEFAULT_VARIANCE
    if reduction.terms is not None:
        law = fit_residual_variance(data.rates_nk, reduction.residuals_nk)
    return LMLEstimate(
        nats_per_sequence=float(row_means_n.mean()),
        nats_per_position=float(row_means_n.sum() / data.lengths_n.sum()),
        se_population=error if claimed else float("nan"),
        se_fixed=float(np.sqrt(row_variances(z_nk).sum()) / n),
        per_sequence=row_means_n,
        sequence_index=sequence_index,
        positions=data.lengths_n,
        groups=groups_n,
        curve=_curve(data, reduction),
        residual_variance=law,
        n_sequences=n,
        forwards_used=n * k,
        effective_sample_size=naive_variance / max(error**2, 1e-300),
        plan_hash=plan_hash,
        degrees_of_freedom={"population": df, "fixed": n * (k - 1)},
    )


def estimate_rows(
    log_prob: LogProb,
    tokens: ArrayLike,
    observed: ArrayLike,
    *,
    forwards: int,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[FloatArray, FloatArray]:
    """Score of each row of ``tokens`` [N, D] and its standard error over the masks, nats [N].

    Arguments as of :func:`estimate_lml`; a row is scored where it is ``observed``, conditional on
    its other tokens. Rows without an observed position have 0. One forward has no error (NaN).
    Guesses sharpen it that need no training data: of one more forward, with all of the row's
    positions masked, and of counts on ``tokens``, which must be ids.
    """
    tokens_ND = np.asarray(tokens)
    plan = LMLPlan.make(observed, forwards=forwards, seed=seed)
    guess = _AllMasked(
        log_prob, batch_size, TokenCovariates.fit(tokens_ND, None, int(tokens_ND.max()) + 1)
    )
    sums_Nk = forward_sums(log_prob, tokens_ND, plan, batch_size)
    z_nk = reduce_variance(observations(plan, sums_Nk, tokens_ND, guess)).z_nk
    nats_N, errors_N = np.zeros((2, len(sums_Nk)))
    nats_N[plan.kept], errors_N[plan.kept] = z_nk.mean(axis=1), np.sqrt(row_variances(z_nk))
    return nats_N, errors_N


@dataclass(frozen=True, eq=False)
class _AllMasked:
    """Guesses of `counts`, and log p where all that is observed of a row is masked."""

    log_prob: LogProb
    batch_size: int
    counts: TokenCovariates

    def controls(
        self, tokens_RD: NDArray[Any], observed_RD: BoolArray, masks_RkD: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        size = self.batch_size
        parts = [slice(at, at + size) for at in range(0, len(tokens_RD), size)]
        found = [as_float64(self.log_prob(tokens_RD[p], observed_RD[p])) for p in parts]
        own = position_controls(np.concatenate(found)[..., None], observed_RD, masks_RkD)
        counted = self.counts.controls(tokens_RD, observed_RD, masks_RkD)
        controls, levels = (np.concatenate(pair, -1) for pair in zip(own, counted, strict=True))
        return controls, levels


def row_variances(z_nk: FloatArray) -> FloatArray:
    """Variance [n] of each row's mean over its masks; NaN for k = 1.

    Successive differences of bands: adjacent strata of one sequence share its own score.
    """
    n, k = z_nk.shape
    if k == 1:
        return np.full(n, np.nan)
    return (np.diff(z_nk, axis=1) ** 2).sum(axis=1) / (2.0 * k * (k - 1))


def _curve(data: Observations, reduction: Reduction) -> MPTCurve:
    """Bins of about equally many forwards, in order of mask rate."""
    rates = data.rates_nk.ravel()
    scores = (data.y_nk / data.lengths_n[:, None]).ravel()
    order = np.argsort(rates, kind="stable")
    bins = np.array_split(order, min(_CURVE_BINS, -(-rates.size // 2)))
    mean_rate = np.array([rates[b].mean() for b in bins])
    sizes = np.array([b.size for b in bins])
    squares = (data.weights_nk * reduction.residuals_nk).ravel() ** 2
    total = float(squares.sum())
    spread = [scores[b].std(ddof=1) if b.size > 1 else np.nan for b in bins]
    return MPTCurve(
        mask_rate=mean_rate,
        mask_count=np.array([data.counts_nk.ravel()[b].mean() for b in bins]),
        mean_log_prob=np.array([scores[b].mean() for b in bins]),
        se=np.array(spread) / np.sqrt(sizes),
        smooth=reduction.smooth(mean_rate),
        forwards=sizes,
        variance_share=np.array(
            [squares[b].sum() / total if total else 1 / len(bins) for b in bins]
        ),
    )
