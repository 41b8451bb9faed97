"""Verifies the estimator against known answers: exact models, and the identity by enumeration.

Every model here knows its log p(x), so a wrong estimate, a wrong standard error or a wrong identity
is seen. Two parts, each with its :class:`Requirement` list:

    beds      PPCA, HMM, Markov chain and a small joint, complete and with values missing
    identity  sum_M S(M) = log p(x) by enumeration of every mask (arXiv 2306.00520, Proposition 1)

Notation and shape suffixes: N sequences, n of them drawn, D positions, B masks. Everything is in
nats per sequence. `benchmarks/founding.py` reproduces the figures of the founding paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import comb, sqrt
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr  # type: ignore[import-untyped, unused-ignore]

from mptune.lml.covariates import Covariates, GaussianCovariates, TokenCovariates
from mptune.lml.estimator import LMLEstimate, estimate_lml
from mptune.models.oracles import HMM, PPCA, Joint, MarkovChain

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
Oracle: TypeAlias = HMM | PPCA | Joint

Estimator: TypeAlias = Callable[..., LMLEstimate]
"""Called as `mptune.lml.estimator.estimate_lml`."""

OnProgress: TypeAlias = Callable[[str, float], None]
"""Called with what runs now, and the share of the whole that is done."""

Z_LIMIT = 4.5
"""A check on a mean fails beyond this many standard errors; by chance 7 in a million do."""

Band: TypeAlias = tuple[float, float]

COVERAGE_BAR: dict[str, Band] = {"population": (0.93, 0.97), "fixed": (0.93, 0.99)}
"""True coverage that nominal 95 % intervals may have.

The error for a fixed set counts differences between neighbouring strata of M as noise, so its
intervals are too wide if D is small: measured on the joint, D = 5, over 2500 replications, 98.7 %
and an error 1.33 times the spread. That is allowed, and reported; too narrow intervals are not.
"""

SPREAD_BAR: Band = (0.85, 1.45)
"""Claimed error for a fixed set over the actual spread; an error twice too wide is outside."""

CHANCE = 1e-3
"""A coverage fails only if chance explains it less often than this, at either end of the bar."""

IDENTITY_TOLERANCE = 1e-12

SEQUENCES, FORWARDS = 120, 2
"""Of one replication."""

_POOL, _SHOWN, _TRAINING = 20_000, 2000, 2000
_MISSING = 0.3
_BATCH = 256


QUICK, FULL = 120, 600
"""Replications of each bed."""


@dataclass(frozen=True)
class Requirement:
    """One thing that must hold; `words` has its figures."""

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class BedResult:
    """Our estimator on one bed. ``estimate`` is of ``sequences`` fixed sequences, from the pool."""

    name: str
    sequences: int
    truth: float
    """Mean exact log p of these sequences."""
    estimate: float
    se: float
    """For exactly these sequences."""
    z: float
    bias: float
    """Mean of estimate less truth over the replications."""
    bias_z: float
    coverage_population: float
    coverage_fixed: float
    se_over_spread: float
    """Root mean square of the error for a fixed set, over the spread of estimate less truth."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All that was computed, and whether it holds."""

    seed: int
    quick: bool
    seconds: float
    replications: int
    coverage_allowed: dict[str, Band]
    """Outside of it a coverage fails; by kind of interval."""
    spread_allowed: Band
    beds: tuple[BedResult, ...]
    checks: tuple[Requirement, ...]

    @property
    def failed(self) -> tuple[Requirement, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)


def verify(
    *,
    quick: bool = False,
    seed: int = 0,
    estimate: Estimator = estimate_lml,
    on_progress: OnProgress = lambda words, share: None,
) -> Verification:
    """Check ``estimate`` against every known answer.

    ``seed`` fixes the samples and plans; the models are always the same.
    """
    started, replications = monotonic(), QUICK if quick else FULL
    kinds = [(k, missing) for k in _ORACLES for missing in (0.0, _MISSING)]
    beds = []
    for index, (kind, missing) in enumerate(kinds):
        bed = make_bed(kind, missing, _seed(seed, index))
        on_progress(bed.name, 0.95 * index / len(kinds))
        beds.append(run_bed(bed, replications, _seed(seed, index, 1), estimate))
    on_progress("identity by enumeration", 0.95)
    return Verification(
        seed=seed,
        quick=quick,
        seconds=monotonic() - started,
        replications=replications,
        coverage_allowed=coverage_allowed(replications),
        spread_allowed=spread_allowed(replications),
        beds=tuple(beds),
        checks=(
            *(check for bed in beds for check in bed_checks(bed, replications)),
            *identity_checks(seed),
        ),
    )


def _seed(*path: int) -> int:
    """A different seed for every path of numbers."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


def _close(name: str, z: float) -> Requirement:
    return Requirement(name, abs(z) < Z_LIMIT, f"z = {z:.2f}, allowed ±{Z_LIMIT}")


def _z(error: float, se: float) -> float:
    """Error in standard errors; 0 / 0 is 0, for a model that is scored exactly."""
    return error / se if se > 0 else 0.0 if abs(error) < 1e-9 else float("inf")


# --- beds with known answers -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model, and a finite population of sequences whose log p is known exactly."""

    name: str
    oracle: Oracle
    covariates: Covariates
    tokens_ND: NDArray[Any]
    observed_ND: BoolArray
    truth_N: FloatArray
    """log p of the observed values."""


_ORACLES: dict[str, Callable[[], Oracle]] = {
    "PPCA": lambda: PPCA.random(length=20, latent=2, noise_variance=0.3, seed=1),
    "HMM": lambda: HMM.random(states=4, vocabulary_size=6, length=16, seed=1),
    "Markov chain": lambda: MarkovChain.random_chain(vocabulary_size=6, length=16, seed=1),
    "joint": lambda: Joint.random(length=5, vocabulary_size=3, seed=1),
}


def make_bed(kind: str, missing: float, seed: int) -> KnownModel:
    """A bed whose values are ``missing`` completely at random; every sequence keeps at least one.

    The population's truth is the mean of this very pool, from which sequences are drawn with
    replacement, so it has no sampling error.
    """
    oracle = _ORACLES[kind]()
    tokens = oracle.sample(_POOL, seed=seed)
    observed = np.random.default_rng(seed).random(tokens.shape) >= missing
    kept = observed.any(axis=1)
    tokens, observed = tokens[kept], observed[kept]
    train = oracle.sample(_TRAINING, seed=_seed(seed, 1))
    covariates: Covariates
    if isinstance(oracle, PPCA):
        covariates, hole = GaussianCovariates.fit(train), np.nan
    else:
        covariates, hole = TokenCovariates.fit(train, None, int(train.max()) + 1), -1
    tokens = np.where(observed, tokens, hole)
    name = f"{kind}, missing" if missing else kind
    return KnownModel(name, oracle, covariates, tokens, observed, oracle.log_marginal(tokens))


def run_bed(bed: KnownModel, replications: int, seed: int, estimate: Estimator) -> BedResult:
    """One estimate of many sequences, and ``replications`` of few."""
    shown, truth = _score(bed, min(_SHOWN, len(bed.truth_N)), _seed(seed, 0), estimate)
    population = bed.truth_N.mean()
    errors, claimed = np.empty(replications), np.empty(replications)
    hits = np.empty((replications, 2))
    for r in range(replications):
        one, truth_r = _score(bed, SEQUENCES, _seed(seed, r + 1), estimate)
        errors[r], claimed[r] = one.nats_per_sequence - truth_r, one.se_fixed
        intervals = one.interval(0.95, "population"), one.interval(0.95, "fixed")
        pairs = zip(intervals, (population, truth_r), strict=True)
        hits[r] = [low <= true <= high for (low, high), true in pairs]
    bias, spread = float(errors.mean()), float(errors.std(ddof=1))
    return BedResult(
        name=bed.name,
        sequences=shown.n_sequences,
        truth=truth,
        estimate=shown.nats_per_sequence,
        se=shown.se_fixed,
        z=_z(shown.nats_per_sequence - truth, shown.se_fixed),
        bias=bias,
        bias_z=_z(bias, spread / sqrt(replications)),
        coverage_population=float(hits[:, 0].mean()),
        coverage_fixed=float(hits[:, 1].mean()),
        se_over_spread=float(np.sqrt((claimed**2).mean())) / max(spread, 1e-300),
    )


def _score(bed: KnownModel, n: int, seed: int, estimate: Estimator) -> tuple[LMLEstimate, float]:
    """The estimate for ``n`` sequences of the pool, and their exact mean log p."""
    rows = np.random.default_rng(seed).integers(len(bed.truth_N), size=n)
    found = estimate(
        bed.oracle.log_prob,
        bed.tokens_ND[rows],
        bed.observed_ND[rows],
        forwards=FORWARDS,
        seed=seed,
        batch_size=_BATCH,
        covariates=bed.covariates,
    )
    return found, float(bed.truth_N[rows].mean())


def coverage_band(
    replications: int, low: float = 0.95, high: float = 0.95, level: float = 0.95
) -> Band:
    """Observed coverages that a true one in ``low..high`` explains, binomial at ``level``.

    >>> coverage_band(600)
    (0.9316..., 0.966...)
    """
    hits, tail = np.arange(replications + 1), (1 - level) / 2
    lowest = int(np.argmax(bdtr(hits, replications, low) > tail))
    highest = int(np.argmax(bdtr(hits, replications, high) >= 1 - tail))
    return lowest / replications, highest / replications


def coverage_allowed(replications: int) -> dict[str, Band]:
    """Observed coverages that are consistent with the bar, by kind of interval."""
    level = 1 - 2 * CHANCE
    return {kind: coverage_band(replications, *bar, level) for kind, bar in COVERAGE_BAR.items()}


def spread_allowed(replications: int) -> Band:
    """Observed SE over spread that are consistent with the bar; of R values, noise 1 / sqrt(2R)."""
    noise = float(np.exp(3.5 / sqrt(2 * (replications - 1))))
    return SPREAD_BAR[0] / noise, SPREAD_BAR[1] * noise


def bed_checks(bed: BedResult, replications: int) -> Iterator[Requirement]:
    """Near the truth, without bias, both intervals cover it, and the error is the spread."""
    yield _close(f"{bed.name}: estimate", bed.z)
    yield _close(f"{bed.name}: bias over replications", bed.bias_z)
    shares = {"population": bed.coverage_population, "fixed": bed.coverage_fixed}
    for kind, (low, high) in coverage_allowed(replications).items():
        words = f"{100 * shares[kind]:.1f} %, allowed {100 * low:.1f} to {100 * high:.1f} %"
        name = f"{bed.name}: coverage of the 95 % interval, {kind}"
        yield Requirement(name, low <= shares[kind] <= high, words)
    low, high = spread_allowed(replications)
    words = f"{bed.se_over_spread:.2f}, allowed {low:.2f} to {high:.2f}"
    yield Requirement(f"{bed.name}: SE over spread", low <= bed.se_over_spread <= high, words)


# --- the identity, by enumeration --------------------------------------------------------------


def mask_scores(oracle: Oracle, tokens_ND: NDArray[Any], observed_ND: BoolArray) -> FloatArray:
    """S(x; M) [N, D], every mask of every size enumerated; 0 for M beyond the observed positions.

    As in `mptune.lml.estimator`: the mean over masks of size M of (1/M) sum over the mask.
    """
    n, length = tokens_ND.shape
    masks_BD = np.array([[b >> j & 1 for j in range(length)] for b in range(1, 2**length)], bool)
    scores_ND, size_N = np.zeros((n, length)), observed_ND.sum(axis=1)
    for mask_D in masks_BD:
        count = int(mask_D.sum())
        rows = np.flatnonzero(observed_ND[:, mask_D].all(axis=1))
        logs_RD = oracle.log_prob(tokens_ND[rows], np.tile(mask_D, (rows.size, 1)))
        subsets_R = np.array([comb(int(size), count) for size in size_N[rows]])
        scores_ND[rows, count - 1] += logs_RD[:, mask_D].sum(axis=1) / (count * subsets_R)
    return scores_ND


def identity_checks(seed: int) -> Iterator[Requirement]:
    """Exact up to rounding on the small joint: every outcome, and each with values missing."""
    joint = _ORACLES["joint"]()
    assert isinstance(joint, Joint)
    outcomes_ND = joint.outcomes_KD
    shown_ND = np.random.default_rng(_seed(seed, 100)).random(outcomes_ND.shape) >= _MISSING
    for name, observed_ND in (("joint", np.ones_like(shown_ND)), ("joint, missing", shown_ND)):
        tokens_ND = np.where(observed_ND, outcomes_ND, -1)
        total_N = mask_scores(joint, tokens_ND, observed_ND).sum(axis=1)
        error = float(np.abs(total_N - joint.log_marginal(tokens_ND)).max())
        words = f"largest error {error:.1e} of {len(tokens_ND)} sequences"
        words += f", allowed {IDENTITY_TOLERANCE:.0e}"
        yield Requirement(f"{name}: Σ S(M) = log p(x)", error < IDENTITY_TOLERANCE, words)
