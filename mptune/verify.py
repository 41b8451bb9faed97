"""Checks the estimator where log p(x) is known exactly: what `mptune verify` runs.

Four parts: the identity sum over M of S(x; M) = log p(x) by enumeration; estimates, errors and
intervals on exact models; the bias of scoring at one rate; and the founding paper's own figures
(Moreno-Munoz, Recasens, Hauberg, NeurIPS 2023, arXiv 2306.00520, section 4.1), with its setup.

Notation: N sequences, D positions, M mask count, P masks per mask count, R replications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mptune.lml import Covariates, GaussianCovariates, LMLEstimate, TokenCovariates, estimate_lml
from mptune.models.oracles import HMM, PPCA, Joint, MarkovChain

FloatArray = NDArray[np.float64]

SEQUENCES = 120
"""Sequences of one replication."""

WIDE = 3.5
"""Standard errors of a check; about 1 of 2000 honest checks fails by chance."""

PAPER_LML = -60.3436
"""Exact mean log p(x) that the paper's code prints, nats per sequence."""

PAPER = {1: (-60.445, 0.474), 10: (-60.223, 0.130), 100: (-60.341, 0.030)}
"""P -> accumulated score that it prints, mean and standard deviation over its 5 seeds."""

Estimator = Callable[..., LMLEstimate]


class Oracle(Protocol):
    """A model whose log p(x) is known."""

    def sample(self, n: int, seed: int) -> Any: ...
    def log_prob(self, tokens_BD: Any, mask_BD: Any) -> Any: ...
    def log_marginal(self, tokens_ND: Any) -> Any: ...


@dataclass(frozen=True)
class Check:
    """One line of the verification.

    ``figures`` are numbers by name, nats per sequence where the name says nothing else.
    """

    part: str
    name: str
    passed: bool
    words: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bed:
    """An exact model, how its data come, and which positions are missing at the source."""

    name: str
    oracle: Oracle
    covariates: Covariates | None
    missing: float = 0.0

    def draw(self, n: int, seed: int) -> tuple[Any, NDArray[np.bool_], FloatArray]:
        """Tokens [n, D], observed [n, D], and the exact log p of the observed part [n]."""
        tokens = self.oracle.sample(n, seed)
        observed = np.random.default_rng([seed, 1]).random(tokens.shape) >= self.missing
        observed[:, 0] = True
        gone = np.nan if tokens.dtype.kind == "f" else -1
        shown = np.where(observed, tokens, gone)
        return shown, observed, np.asarray(self.oracle.log_marginal(shown))


def beds() -> list[Bed]:
    """The exact models, each with the covariates that a user of such data would have."""
    hmm = HMM.random(states=4, vocabulary_size=6, length=16, seed=1)
    chain = MarkovChain.random_chain(vocabulary_size=5, length=16, seed=1)
    ppca = PPCA.random(length=20, latent=2, noise_variance=0.3, seed=1)
    joint = Joint.random(length=5, vocabulary_size=3, seed=3)
    counts = TokenCovariates.fit(hmm.sample(1000, 10**6), None, 6)
    return [
        Bed("HMM", hmm, counts),
        Bed("HMM, 20 % missing", hmm, counts, missing=0.2),
        Bed("Markov chain", chain, TokenCovariates.fit(chain.sample(1000, 10**6), None, 5)),
        Bed("PPCA", ppca, GaussianCovariates.fit(ppca.sample(1000, 10**6))),
        Bed("PPCA, 20 % missing", ppca, None, missing=0.2),
        Bed("joint of 5 positions", joint, None),
    ]


def verify(
    *, quick: bool = False, seed: int = 0, estimate: Estimator = estimate_lml
) -> Iterator[Check]:
    """Yield the checks one by one; ``estimate`` is what is checked.

    ``quick`` takes fewer replications and leaves the paper's slowest row out.
    """
    yield _identity()
    for bed in beds():
        yield from _bed_checks(bed, 60 if quick else 400, seed, estimate)
    yield from _bias_of_one_rate()
    yield from _paper((1, 10) if quick else (1, 10, 100), seed, estimate)


# --- the identity ------------------------------------------------------------------------------


def exact_scores(oracle: Oracle, tokens_D: Any) -> FloatArray:
    """S(x; M) for M = 1..D [D], over every mask of that size."""
    length, scores = tokens_D.size, []
    for size in range(1, length + 1):
        chosen = np.array(list(combinations(range(length), size)))
        mask = np.zeros((len(chosen), length), np.bool_)
        np.put_along_axis(mask, chosen, True, axis=1)
        values = oracle.log_prob(np.tile(tokens_D, (len(mask), 1)), mask)
        scores.append(np.where(mask, values, 0.0).sum(axis=1).mean() / size)
    return np.array(scores)


def _identity() -> Check:
    joint = Joint.random(length=5, vocabulary_size=3, seed=3)
    outcomes = joint.outcomes_KD[::11]
    sums = np.array([exact_scores(joint, x).sum() for x in outcomes])
    worst = float(np.abs(sums - joint.log_marginal(outcomes)).max())
    return Check(
        "identity",
        "joint of 5 positions",
        worst < 1e-12,
        f"sum over M of S(x; M) is log p(x) to {worst:.0e} for {len(outcomes)} outcomes",
        {"largest_error": worst},
    )


# --- exact models ------------------------------------------------------------------------------


def _bed_checks(bed: Bed, replications: int, seed: int, estimate: Estimator) -> Iterator[Check]:
    fixed = bed.draw(SEQUENCES, 10**7)
    yield _one_estimate(bed, fixed, seed, estimate)
    population = float(bed.draw(20_000, 10**8)[2].mean())
    yield _coverage(bed, "population", population, None, replications, seed, estimate)
    exact = float(fixed[2].mean())
    yield _coverage(bed, "fixed", exact, fixed, replications, seed, estimate)


def _estimated(bed: Bed, drawn: Any, seed: int, estimate: Estimator) -> LMLEstimate:
    tokens, observed, _ = drawn
    return estimate(
        bed.oracle.log_prob,
        tokens,
        observed,
        forwards=2,
        seed=seed,
        batch_size=512,
        covariates=bed.covariates,
    )


def _one_estimate(bed: Bed, fixed: Any, seed: int, estimate: Estimator) -> Check:
    found, truth = _estimated(bed, fixed, seed, estimate), float(fixed[2].mean())
    z = (found.nats_per_sequence - truth) / found.se_fixed
    figures = {
        "truth": truth,
        "estimate": found.nats_per_sequence,
        "se_fixed": found.se_fixed,
        "z": z,
    }
    words = (
        f"truth {truth:.3f}, estimate {found.nats_per_sequence:.3f} ± {found.se_fixed:.3f}, "
        f"z = {z:+.2f}"
    )
    return Check("exact models", bed.name, bool(abs(z) < WIDE), words, figures)


def _coverage(
    bed: Bed, kind: Any, truth: float, fixed: Any, replications: int, seed: int, estimate: Estimator
) -> Check:
    """Share of nominal 95 % intervals that hold the truth, within its binomial band."""
    hits = 0
    for replication in range(replications):
        number = seed + 1 + replication
        drawn = fixed or bed.draw(SEQUENCES, number)
        low, high = _estimated(bed, drawn, number, estimate).interval(kind=kind)
        hits += bool(low <= truth <= high)
    rate, band = hits / replications, WIDE * (0.95 * 0.05 / replications) ** 0.5
    words = (
        f"95 % intervals for the {'population' if kind == 'population' else 'fixed set'} hold "
        f"the truth in {100 * rate:.1f} % of {replications} (chance: ± {100 * band:.1f})"
    )
    return Check("exact models", bed.name, abs(rate - 0.95) <= band, words, {"coverage": rate})


# --- the bias of one rate ----------------------------------------------------------------------


def _bias_of_one_rate() -> Iterator[Check]:
    """D S(M) - LML of a PPCA with D = 5 (loadings of our own), by enumeration."""
    ppca = PPCA.random(length=5, latent=2, noise_variance=0.2, seed=0)
    values = ppca.sample(400, seed=1)
    scores = np.mean([exact_scores(ppca, x) for x in values], axis=0)
    bias = 5 * scores - ppca.log_marginal(values).mean()
    falls = bool((np.diff(bias) < 0).all() and bias[0] > 0 > bias[-1])
    sums_to_zero = abs(float(bias.mean())) < 1e-9
    words = "D S(M) - LML at M = 1..5: " + ", ".join(f"{b:+.2f}" for b in bias)
    figures = {f"M={m}": float(b) for m, b in enumerate(bias, start=1)}
    yield Check("bias of one rate", "PPCA, D = 5", falls and sums_to_zero, words, figures)


# --- the founding paper ------------------------------------------------------------------------


def paper_data() -> tuple[PPCA, FloatArray]:
    """The model and the data [1000, 200] of the paper's PPCA figure, draw for draw.

    Its noise is one number of standard deviation 1/5 for all positions of a sequence, while its
    covariance has *variance* 1/5 at each position: the data are not quite the model's, and the
    score, which only compares conditionals with their own joint, does not mind.
    """
    import torch

    generator = torch.Generator().manual_seed(1991)
    loadings = torch.randn(200, 5, generator=generator)
    latent = torch.randn(1000, 5, generator=generator)
    noise = torch.randn(1000, 1, generator=generator) / 5
    values = latent @ loadings.T + noise
    return PPCA(loadings.double().numpy(), 0.2), values.double().numpy()


def accumulated(ppca: PPCA, values_ND: FloatArray, masks: int, seed: int) -> float:
    """The paper's estimator: at every M the mean over P masks, each shared by all sequences."""
    rng, length = np.random.default_rng(seed), ppca.length
    total = 0.0
    for size in range(1, length + 1):
        for _ in range(masks):
            total += _shared_mask_score(ppca, values_ND, rng.permutation(length)[:size])
    return total / masks


def _shared_mask_score(ppca: PPCA, values_ND: FloatArray, masked: Any) -> float:
    """Mean log density of the masked positions, from the posterior of the latents."""
    seen = np.setdiff1d(np.arange(ppca.length), masked)
    shown_SQ, hidden_MQ = ppca.loadings_DQ[seen], ppca.loadings_DQ[masked]
    noise = ppca.noise_variance
    covariance_QQ = np.linalg.inv(np.eye(shown_SQ.shape[1]) + shown_SQ.T @ shown_SQ / noise)
    latent_NQ = values_ND[:, seen] @ shown_SQ @ covariance_QQ / noise
    variance_M = noise + ((hidden_MQ @ covariance_QQ) * hidden_MQ).sum(axis=1)
    error_NM = values_ND[:, masked] - latent_NQ @ hidden_MQ.T
    density_NM = -0.5 * (error_NM**2 / variance_M + np.log(2 * np.pi * variance_M))
    return float(density_NM.mean())


def _paper(masks: tuple[int, ...], seed: int, estimate: Estimator) -> Iterator[Check]:
    ppca, values = paper_data()
    exact = float(ppca.log_marginal(values).mean())
    words = f"exact log p(x) of its data: paper {PAPER_LML}, here {exact:.4f} nats per sequence"
    yield Check("paper", "exact", abs(exact - PAPER_LML) < 0.01, words, {"lml": exact})
    for number in masks:
        yield _paper_row(ppca, values, number, exact)
    moments = GaussianCovariates.fit(values)
    found = estimate(
        ppca.log_prob, values, forwards=2, seed=seed, batch_size=128, covariates=moments
    )
    z = (found.nats_per_sequence - exact) / found.se_fixed
    words = (
        f"our estimator, {found.forwards_used:,} forwards: {found.nats_per_sequence:.3f} ± "
        f"{found.se_fixed:.3f}, z = {z:+.2f} (P = 1 takes 200,000 forwards)"
    )
    figures = {"estimate": found.nats_per_sequence, "se_fixed": found.se_fixed, "z": z}
    yield Check("paper", "ours", bool(abs(z) < WIDE), words, figures)


def _paper_row(ppca: PPCA, values: FloatArray, masks: int, exact: float) -> Check:
    runs = [accumulated(ppca, values, masks, seed) for seed in range(5)]
    mean, spread = float(np.mean(runs)), float(np.std(runs, ddof=1))
    paper_mean, paper_spread = PAPER[masks]
    both = WIDE * ((spread**2 + paper_spread**2) / 5) ** 0.5
    words = (
        f"accumulated with P = {masks}: paper {paper_mean} (sd {paper_spread}), here {mean:.3f} "
        f"(sd {spread:.3f}) over 5 seeds"
    )
    figures = {"mean": mean, "sd": spread, "paper_mean": paper_mean, "paper_sd": paper_spread}
    agrees = abs(mean - paper_mean) < both and abs(mean - exact) < WIDE * spread / 5**0.5 * 1.6
    return Check("paper", f"P = {masks}", agrees, words, figures)
