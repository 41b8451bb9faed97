"""Quality of the accumulated LML estimator: variance, decisions, coverage, and its own cost.

    python benchmarks/estimator.py [--quick] [--json FILE] [--only PART ...]

The true values do not depend on the estimator: they are exact likelihoods of an HMM and of a PPCA.
The character model is trained here, for a few minutes, on the standard library of the running
Python. Ratios compare with the naive estimator, which draws M uniformly and independently and
averages (D/M) sum over the mask of log p.

Parts: variance, decide, coverage, type1, sudoku, tails, ratios, groups, cost. --quick uses fewer
repeats; its ratios are accurate to about a third, so do not quote them.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from mptune.lml.adaptive import LEAST, Side, compare_lml, decide, race_lml, sequential_half_width
from mptune.lml.covariates import Covariates, GaussianCovariates, TokenCovariates, position_controls
from mptune.lml.estimator import estimate_lml, masked_sums
from mptune.lml.groups import group_scores, group_standard_error
from mptune.lml.plan import LMLPlan
from mptune.models.oracles import HMM, PPCA, Joint

FORWARDS = {1: 512, 4: 2048}
"""Forwards of one estimate by k: the same 512 sequences."""

TRAINING_SEQUENCES = 2000
BLOCK = 16
LENGTH = 128


@dataclass(frozen=True)
class Sizes:
    """Numbers of repeats and sequences."""

    repeats: int
    character_repeats: int
    training_steps: int
    races: int
    coverage: int
    type1: int
    small: int


FULL = Sizes(300, 60, 1500, 24, 600, 512, 500)
QUICK = Sizes(20, 3, 40, 2, 40, 8, 20)


@dataclass(frozen=True)
class Bed:
    name: str
    log_prob: Callable[..., Any]
    sample: Callable[[int, int], Any]
    covariates: Covariates
    truth: Callable[[Any], Any] | None
    """Exact log p(x) [N], or None if it is unknown."""


@cache
def hmm_bed(length: int = 64, states: int = 8, vocabulary: int = 16) -> Bed:
    hmm = HMM.random(states=states, vocabulary_size=vocabulary, length=length, seed=1)
    counts = TokenCovariates.fit(hmm.sample(TRAINING_SEQUENCES, seed=2), None, vocabulary)
    return Bed(f"HMM D={length}", hmm.log_prob, hmm.sample, counts, hmm.log_marginal)


@cache
def ppca_bed(length: int = 128, latent: int = 4, noise: float = 0.2) -> Bed:
    ppca = PPCA.random(length=length, latent=latent, noise_variance=noise, seed=1)
    moments = GaussianCovariates.fit(ppca.sample(TRAINING_SEQUENCES, seed=2))
    return Bed(f"PPCA D={length}", ppca.log_prob, ppca.sample, moments, ppca.log_marginal)


# --- a character model -------------------------------------------------------------------------


@dataclass(frozen=True)
class Characters:
    """A trained model, and earlier states of it."""

    models: list[Any]
    heldout: Any
    counts: TokenCovariates
    mask_id: int

    def log_prob(self, which: int) -> Callable[..., Any]:
        import torch
        from torch.nn.functional import cross_entropy

        model = self.models[which]

        def log_prob(tokens_BD: Any, mask_BD: Any) -> Any:
            inputs = torch.from_numpy(np.where(mask_BD, self.mask_id, tokens_BD))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                logits_KV = model(inputs, torch.from_numpy(mask_BD)).float()
            out = np.zeros(tokens_BD.shape)
            target_K = torch.from_numpy(tokens_BD[mask_BD])
            out[mask_BD] = -cross_entropy(logits_KV, target_K, reduction="none").double().numpy()
            return out

        return log_prob

    def sample(self, n: int, seed: int) -> Any:
        rows = np.random.default_rng(seed).choice(len(self.heldout), n, replace=False)
        return self.heldout[rows]


@cache
def characters(steps: int) -> Characters:
    """ModernBERT 64 x 2 on bytes, trained with uniform mask counts, and earlier states."""
    import torch

    from mptune.data.text import Text
    from mptune.models.families import ModernBert

    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = Text.model_validate({"source": "python-stdlib", "length": LENGTH})
    with tempfile.TemporaryDirectory() as cache_folder:
        table = data.prepare(Path(cache_folder))
        train = np.array(table.train.tokens[table.train.observed.all(axis=1)], np.int64)
        heldout = np.array(table.heldout.tokens[table.heldout.observed.all(axis=1)], np.int64)
    family = ModernBert(family="modernbert", width=64, depth=2)
    model = family.build(table.total_vocabulary, table.vocabulary_size, LENGTH)
    states = _train(model, train, table.mask_id, steps)
    counts = TokenCovariates.fit(train, None, table.vocabulary_size)
    return Characters(states, heldout, counts, table.mask_id)


def _train(model: Any, train: Any, mask_id: int, steps: int) -> list[Any]:
    import torch
    from torch.nn.functional import cross_entropy

    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    kept = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        tokens_BD = train[rng.integers(0, len(train), 32)]
        count_B = rng.integers(1, LENGTH + 1, 32)
        mask_BD = rng.random(tokens_BD.shape).argsort(1).argsort(1) < count_B[:, None]
        inputs = torch.from_numpy(np.where(mask_BD, mask_id, tokens_BD))
        with torch.autocast("cpu", torch.bfloat16):
            logits_KV = model(inputs, torch.from_numpy(mask_BD)).float()
        loss_K = cross_entropy(logits_KV, torch.from_numpy(tokens_BD[mask_BD]), reduction="none")
        weight_K = torch.from_numpy((1 / count_B)[np.nonzero(mask_BD)[0]]).float()
        optimizer.zero_grad()
        (loss_K * weight_K).sum().div(32).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step + 1 in {int(share * steps) for share in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)}:
            kept.append(copy.deepcopy(model).eval())
    return [model.eval(), *kept]


def character_bed(steps: int) -> Bed:
    trained = characters(steps)
    return Bed(f"characters D={LENGTH}", trained.log_prob(0), trained.sample, trained.counts, None)


# --- variance ----------------------------------------------------------------------------------


def naive_scores(bed: Bed, tokens: Any, repeats: int, seed: int = 0) -> Any:
    """One forward of every sequence per repeat [repeats, N], nats."""
    rng, length = np.random.default_rng(seed), tokens.shape[1]
    scores = []
    for _ in range(repeats):
        count = rng.integers(1, length + 1, len(tokens))
        mask = rng.random(tokens.shape).argsort(axis=1).argsort(axis=1) < count[:, None]
        values = np.concatenate(
            [
                masked_sums(bed.log_prob(tokens[at : at + 128], mask[at : at + 128]),
                            mask[at : at + 128])
                for at in range(0, len(tokens), 128)
            ]
        )  # fmt: skip
        scores.append(length / count * values)
    return np.array(scores)


def errors(bed: Bed, tokens: Any, plans: list[LMLPlan], covariates: Covariates | None) -> Any:
    """Estimate minus truth (or minus the mean estimate) of each plan."""
    found = [
        estimate_lml(
            bed.log_prob, tokens, plan=plan, batch_size=128, covariates=covariates
        ).nats_per_sequence
        for plan in plans
    ]
    if bed.truth is None:
        return (np.array(found) - np.mean(found)) * (len(found) / (len(found) - 1)) ** 0.5
    return np.array(found) - bed.truth(tokens).mean()


def variance(bed: Bed, k: int, repeats: int) -> dict[str, Any]:
    tokens = bed.sample(FORWARDS[k] // k, 3)
    shown = np.ones(tokens.shape, bool)
    pilot = estimate_lml(
        bed.log_prob, tokens, forwards=k, seed=10**6, covariates=bed.covariates
    ).residual_variance
    plain = [LMLPlan.make(shown, forwards=k, seed=s) for s in range(repeats)]
    refined = [
        LMLPlan.make(shown, forwards=k, seed=s, residual_variance=pilot) for s in range(repeats)
    ]
    naive = naive_scores(bed, tokens, max(repeats // 2, 20)).var(axis=0, ddof=1).mean()
    naive /= len(tokens) * k
    ratios = {
        "without_covariates": naive / np.square(errors(bed, tokens, plain, None)).mean(),
        "ratio": naive / np.square(errors(bed, tokens, plain, bed.covariates)).mean(),
        "after_pilot": naive / np.square(errors(bed, tokens, refined, bed.covariates)).mean(),
    }
    # A sample variance of n normal errors has relative standard deviation sqrt(2 / n).
    spread = 1.96 * (2 / repeats) ** 0.5
    return {"bed": bed.name, "k": k, "repeats": repeats, "spread": spread, **ratios}


# --- decisions ---------------------------------------------------------------------------------


def decide_characters(sizes: Sizes, nats: float) -> dict[str, Any]:
    """Forwards per model to decide between two trained models: our method and naive sampling."""
    trained = characters(sizes.training_steps)
    other, gap, paired_variance = _worse_by(trained, nats)
    ours = []
    for seed in range(sizes.races):
        tokens = trained.sample(4096, 100 + seed)
        sides = [
            Side.of(trained.log_prob(which), tokens, None, trained.counts, 128)
            for which in (0, other)
        ]
        *_, last = race_lml(*sides, block=BLOCK, seed=seed, least=8 * BLOCK)
        ours.append((last.forwards, last.verdict))
    naive = [_naive_race(trained, other, sizes, seed) for seed in range(sizes.races)]
    forwards = [f for f, _ in ours]
    return {
        "difference_nats": gap,
        "variance_ratio": _naive_difference(sizes, other) / paired_variance,
        "races": sizes.races,
        "ours_median": float(np.median(forwards)),
        "ours_range": [min(forwards), max(forwards)],
        "ours_right": sum(v == "a" for _, v in ours),
        "naive_median": float(np.median([f for f, _ in naive])),
        "naive_range": [min(f for f, _ in naive), max(f for f, _ in naive)],
        "naive_right": sum(right for _, right in naive),
        "ratio": float(np.median([f for f, _ in naive]) / np.median(forwards)),
    }


def _worse_by(trained: Characters, nats: float) -> tuple[int, float, float]:
    """Find the earlier state whose score is nearest to `nats` below that of the last state.

    Returns the state, the difference, and the variance of the paired difference per sequence.
    """
    tokens = trained.sample(min(1024, len(trained.heldout)), 7)
    scores = [
        estimate_lml(
            trained.log_prob(which), tokens, forwards=1, covariates=trained.counts, batch_size=128
        ).per_sequence
        for which in range(len(trained.models))
    ]
    differences = [scores[0] - score for score in scores]
    gaps = [float(difference.mean()) for difference in differences]
    other = int(np.argmin([abs(gap - nats) if n else np.inf for n, gap in enumerate(gaps)]))
    return other, gaps[other], float(differences[other].var(ddof=1))


def _naive_difference(sizes: Sizes, other: int) -> float:
    """Variance of the difference of two models' naive scores, per forward of each."""
    return sum(float(_pool(sizes, which).var(ddof=1)) for which in (0, other))


def _pool(sizes: Sizes, which: int) -> Any:
    return _naive_pool(sizes.training_steps, which, 6 if sizes is FULL else 2)


@cache
def _naive_pool(steps: int, which: int, repeats: int) -> Any:
    """Naive scores of many sequences, from which races are drawn."""
    trained = characters(steps)
    bed = Bed("", trained.log_prob(which), trained.sample, trained.counts, None)
    tokens = trained.sample(min(2048, len(trained.heldout)), 11 + which)
    return naive_scores(bed, tokens, repeats, seed=which).ravel()


def _naive_race(trained: Characters, other: int, sizes: Sizes, seed: int) -> tuple[int, bool]:
    """The same stopping rule, with independent sequences and masks for the two models."""
    rng, most = np.random.default_rng(seed), 400_000
    draws = [rng.choice(_pool(sizes, which), most) for which in (0, other)]
    means = (draws[0] - draws[1]).reshape(-1, BLOCK).mean(axis=1)
    t = 8
    while t < len(means):
        mean, half = means[:t].mean(), sequential_half_width(means[:t])
        if abs(mean) > half:
            return t * BLOCK, bool(mean > 0)
        t = max(t + 1, int(t * 1.02))
    return most, False


# --- coverage and type-I error -----------------------------------------------------------------


def coverage(bed: Bed, kind: str, repeats: int, n: int = 120) -> dict[str, Any]:
    """Share of nominal 95 % intervals that contain the truth, over new data or new masks."""
    fixed = bed.sample(n, 7)
    truth = _truth(bed, fixed if kind == "fixed" else None)
    hits = 0
    for seed in range(repeats):
        tokens = fixed if kind == "fixed" else bed.sample(n, 1000 + seed)
        estimate = estimate_lml(
            bed.log_prob, tokens, seed=seed, batch_size=128, covariates=bed.covariates
        )
        low, high = estimate.interval(kind=kind)  # type: ignore[arg-type]
        hits += bool(low <= truth <= high)
    rate = hits / repeats
    return {"bed": bed.name, "kind": kind, "repeats": repeats, "coverage": rate}


def _truth(bed: Bed, tokens: Any) -> float:
    """The exact value if it is known; otherwise the mean of many estimates with other masks."""
    if bed.truth is not None:
        return float(bed.truth(bed.sample(100_000, 10**7) if tokens is None else tokens).mean())
    if tokens is None:
        tokens, forwards, times = bed.sample(12_000, 10**7), 2, 1
    else:
        forwards, times = 8, 40
    return float(
        np.mean(
            [
                estimate_lml(
                    bed.log_prob,
                    tokens,
                    forwards=forwards,
                    seed=10**6 + s,
                    batch_size=128,
                    covariates=bed.covariates,
                ).nats_per_sequence
                for s in range(times)
            ]
        )
    )


def type1(repeats: int) -> dict[str, Any]:
    """Type-I error with two models that differ on every sequence but, by symmetry, not on average.

    A sequence is two independent stretches of one HMM; each model has wrong transitions for one of
    them. Every look counts, up to 64 blocks.
    """
    half = 16
    true = HMM.random(states=4, vocabulary_size=6, length=half, seed=1)
    wrong = HMM(true.initial_S, 0.8 * true.transition_SS + 0.05, true.emission_SV, half)

    def both(first: HMM, second: HMM) -> Callable[..., Any]:
        return lambda x, m: np.concatenate(
            [first.log_prob(x[:, :half], m[:, :half]), second.log_prob(x[:, half:], m[:, half:])],
            axis=1,
        )

    def sample(n: int, seed: int) -> Any:
        return np.concatenate([true.sample(n, 2 * seed), true.sample(n, 2 * seed + 1)], axis=1)

    counts = TokenCovariates.fit(sample(1000, 10**6), None, 6)
    decided = sum(
        compare_lml(
            both(wrong, true),
            both(true, wrong),
            sample(64 * BLOCK, seed),
            covariates=counts,
            seed=seed,
            batch_size=512,
            block=BLOCK,
            least=8 * BLOCK,
        ).verdict
        != "undecided"
        for seed in range(repeats)
    )
    return {"repeats": repeats, "rate": decided / repeats}


# --- small data, tails and ratios ----------------------------------------------------------------


@dataclass(frozen=True)
class Scaled:
    """Covariates as before: what is constant but for rounding is scaled up and used."""

    covariates: Covariates

    def controls(self, tokens_RD: Any, observed_RD: Any, masks_RkD: Any) -> tuple[Any, Any]:
        controls, levels = self.covariates.controls(tokens_RD, observed_RD, masks_RkD)
        return 1e12 * controls, 1e12 * (levels - levels.mean(0))


@dataclass(frozen=True)
class Constant:
    """The guess that all tokens are equally likely."""

    vocabulary: int

    def controls(self, tokens_RD: Any, observed_RD: Any, masks_RkD: Any) -> tuple[Any, Any]:
        guess_RDC = np.full((*tokens_RD.shape, 1), -np.log(float(self.vocabulary)))
        return position_controls(guess_RDC, observed_RD, masks_RkD)


def sudoku_grids() -> Joint:
    """Uniform over the 288 Sudoku grids of 4 x 4 (D = 16): each symbol occurs four times."""
    made = Joint(np.ones(288))
    rows_R4 = np.array(list(permutations(range(4))))
    grids_K44 = rows_R4[np.indices((24,) * 4).reshape(4, -1).T]
    blocks_K44 = grids_K44.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
    units_K84 = np.concatenate([grids_K44.swapaxes(1, 2), blocks_K44], axis=1)
    allowed_K = (np.sort(units_K84) == np.arange(4)).all(axis=(1, 2))
    made.length, made.outcomes_KD = 16, grids_K44[allowed_K].reshape(-1, 16)
    return made


def sudoku(repeats: int, n: int, k: int, counts: bool) -> dict[str, Any]:
    """Bias and coverage on 4 x 4 Sudoku grids, whose symbols are balanced: log p(x) = -ln 288.

    Old: counts of every band in plain random order, and no control variate is dropped.
    """
    bed = sudoku_grids()
    guess = TokenCovariates.fit(bed.sample(2000, 5), None, 4) if counts else Constant(4)
    errors, hits = np.zeros((2, repeats)), np.zeros(2)
    for seed in range(repeats):
        rng, tokens = np.random.default_rng(seed), bed.sample(n, 10**6 + seed)
        plan = LMLPlan.make(np.ones(tokens.shape, bool), forwards=k, seed=seed)
        order_nk = rng.random((n, k)).argsort(axis=0)
        plain = replace(
            plan,
            counts_Nk=np.take_along_axis(plan.counts_Nk, order_nk, 0),
            weights_Nk=np.take_along_axis(plan.weights_Nk, order_nk, 0),
        )
        for which, (drawn, used) in enumerate(((plain, Scaled(guess)), (plan, guess))):
            found = estimate_lml(bed.log_prob, tokens, plan=drawn, covariates=used)
            low, high = found.interval()
            errors[which, seed] = found.nats_per_sequence + np.log(288)
            hits[which] += low <= -np.log(288) <= high
    return {
        "n": n,
        "k": k,
        "guesses": "counts" if counts else "constant",
        "repeats": repeats,
        "bias_old_new": errors.mean(1).tolist(),
        "bias_over_se_old_new": (errors.mean(1) / errors.std(1) * repeats**0.5).tolist(),
        "coverage_old_new": (hits / repeats).tolist(),
    }


DIFFERENCES: dict[str, Callable[[Any, int], Any]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal(1)": lambda rng, n: np.exp(rng.normal(size=n)) - np.exp(0.5),
    "lognormal(2)": lambda rng, n: np.exp(2 * rng.normal(size=n)) - np.exp(2.0),
    "0.3 % rare": lambda rng, n: rng.normal(size=n) + 200 * ((rng.random(n) < 0.003) - 0.003),
    "normal + 0.2 SD": lambda rng, n: rng.normal(size=n) + 0.2,
    "lognormal(1) + 0.2 SD": lambda rng, n: (
        np.exp(rng.normal(size=n)) - np.exp(0.5) + 0.2 * np.sqrt(np.e**2 - np.e)
    ),
}
"""Paired differences of two models on n sequences; of the first four, the mean is 0."""


def heavy_tails(repeats: int, name: str, n: int) -> dict[str, Any]:
    """Races over given differences: share decided, and median sequences, by both rules.

    Old: a verdict from the eighth block on, as soon as the interval excludes zero.
    """
    decided, used = np.zeros(2), np.full((2, repeats), n)
    for seed in range(repeats):
        difference = DIFFERENCES[name](np.random.default_rng(seed), n)
        for which in (0, 1):
            t = 8
            while t * BLOCK <= n:
                rows = np.arange(t * BLOCK)
                d = difference[rows]
                if which == 0:
                    means = d.reshape(t, BLOCK).mean(1)
                    stop = abs(means.mean()) > sequential_half_width(means)
                else:
                    few = rows.size < LEAST
                    stop = not few and decide(d, rows // BLOCK, rows, 0.95, few)[2] != "undecided"
                if stop:
                    decided[which] += 1
                    used[which, seed] = rows.size
                    break
                t = max(t + 1, int(t * 1.02))
    return {
        "differences": name,
        "sequences": n,
        "repeats": repeats,
        "decided_old_new": (decided / repeats).tolist(),
        "median_old_new": np.median(used, axis=1).tolist(),
    }


def ratios(repeats: int, n: int = 400) -> dict[str, Any]:
    """Width of the interval of nats per byte against the true one, with lines as documents.

    Lines of the standard library are scored by a bigram model of bytes, counted on other files.
    """
    from mptune.data.text import documents

    texts = [t.encode() for t in documents(["python-stdlib"], "file", Path())]
    counts = np.full((256, 256), 0.02)
    for text in texts[::2]:
        pairs = np.frombuffer(text, np.uint8)
        np.add.at(counts, (pairs[:-1], pairs[1:]), 1)
    log_VV = np.log(counts / counts.sum(1, keepdims=True))
    lines = [np.frombuffer(b"\n" + x, np.uint8) for t in texts[1::2] for x in t.splitlines() if x]
    lengths = np.array([len(x) - 1 for x in lines])
    scores = np.array([log_VV[x[:-1], x[1:]].sum() for x in lines])
    truth, rng = scores.sum() / lengths.sum(), np.random.default_rng(0)
    values, errors = np.zeros(repeats), np.zeros((2, repeats))
    for r in range(repeats):
        rows = rng.integers(0, len(lines), n)
        y, size = scores[rows], lengths[rows]
        values[r] = y.sum() / size.sum()
        errors[0, r] = y.std(ddof=1) / n**0.5 / size.mean()
        errors[1, r] = group_standard_error(y, np.arange(n), size)[0]
    hits = np.abs(values - truth) <= 1.966 * errors
    return {
        "lines": n,
        "repeats": repeats,
        "width_old_new": (np.sqrt((errors**2).mean(1)) / values.std()).tolist(),
        "coverage_old_new": hits.mean(1).tolist(),
    }


# --- groups ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Groups of sequences; `draw(rng, G)` gives scores [n], groups [n] of G new ones."""

    name: str
    draw: Callable[[Any, int], tuple[Any, Any]]
    truth: float


def group_sizes(rng: Any, count: int, sizes: str) -> Any:
    """Sequences of each group: 16, or lognormal with the same mean, or one of half of them all."""
    if sizes == "equal":
        return np.full(count, 16)
    if sizes == "one large":
        return np.r_[np.full(count - 1, 8), 8 * (count - 1)]
    return np.maximum(1, np.rint(16 * np.exp(rng.normal(size=count) - 0.5))).astype(int)


def normal_groups(sizes: str, icc: float = 0.25) -> Population:
    """Normal effects of groups and of sequences; the mean is 0."""

    def draw(rng: Any, count: int) -> tuple[Any, Any]:
        groups = np.repeat(np.arange(count), group_sizes(rng, count, sizes))
        effects = icc**0.5 * rng.normal(size=count)[groups]
        return effects + (1 - icc) ** 0.5 * rng.normal(size=len(groups)), groups

    return Population(f"normal, {sizes}", draw, 0.0)


@cache
def library_scores(length: int = 64) -> tuple[Any, Any]:
    """Scores [N, 2] of the standard library's sequences by two bigram models of bytes; files [N].

    The models are counted on two tenths of the files, the others are scored: exact log p(x), nats.
    """
    from mptune.data.text import documents

    rng = np.random.default_rng(0)
    texts = [
        np.frombuffer(t.encode(), np.uint8) for t in documents(["python-stdlib"], "file", Path())
    ]
    texts = [t[: len(t) // length * length].reshape(-1, length) for t in texts if len(t) >= length]
    order = rng.permutation(len(texts))
    cut = len(texts) // 10
    scores = []
    for part in (order[:cut], order[cut : 2 * cut]):
        rows = np.concatenate([texts[i] for i in part]).astype(int)
        counts = np.full((256, 256), 0.02)
        np.add.at(counts, (rows[:, :-1], rows[:, 1:]), 1)
        log_VV = np.log(counts / counts.sum(1, keepdims=True))
        scores.append(
            [log_VV[t[:, :-1], t[:, 1:]].sum(1) for t in (texts[i] for i in order[2 * cut :])]
        )
    files = np.repeat(np.arange(len(scores[0])), [len(t) for t in scores[0]])
    return np.stack([np.concatenate(z) for z in scores], 1), files


def library_groups(of: str, most: int = 32) -> Population:
    """Files drawn anew from all files, each with at most `most` of its sequences."""
    scores, files = library_scores()
    values = scores[:, 0] if of == "score" else scores[:, 0] - scores[:, 1]
    rng = np.random.default_rng(1)
    by_file = [
        rng.permutation(v)[:most] for v in np.split(values, np.flatnonzero(np.diff(files)) + 1)
    ]

    def draw(rng: Any, count: int) -> tuple[Any, Any]:
        drawn = [by_file[i] for i in rng.integers(0, len(by_file), count)]
        return np.concatenate(drawn), np.repeat(np.arange(count), [len(v) for v in drawn])

    return Population(f"library files, {of}", draw, float(np.concatenate(by_file).mean()))


def covered(bed: Population, count: int, repeats: int) -> dict[str, Any]:
    """Coverage of 95 % intervals by sequences (old) and by groups (new), and races decided wrongly.

    A race is over the difference from the truth, in blocks of 16 sequences (old) or of whole groups
    (new), with a look at every block.
    """
    from scipy.special import stdtrit

    hits, wrong, ratio = np.zeros(2), np.zeros(2), []
    for seed in range(repeats):
        values, groups = bed.draw(np.random.default_rng([count, seed]), count)
        values = values - bed.truth
        n = len(values)
        row = values.std(ddof=1) / n**0.5
        error, df = group_standard_error(values, groups)
        hits += abs(values.mean()) <= np.array([row, error]) * stdtrit([n - 1, df], 0.975)
        ratio.append(error / row)
        # Groups come in random order already; sequences of the old race are shuffled.
        shuffled = np.random.default_rng(seed).permutation(values)
        ends = np.flatnonzero(np.diff(groups, append=-1)) + 1
        edges, least = [0], BLOCK if count >= 16 else 1
        for end in ends:
            if end - edges[-1] >= least:
                edges.append(int(end))
        whole = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        old = np.arange(n // BLOCK * BLOCK) // BLOCK
        for which, (d, blocks) in enumerate(((shuffled, old), (values, whole))):
            ends = np.flatnonzero(np.diff(blocks, append=-1)) + 1
            wrong[which] += any(
                abs((means := group_scores(d[:end], blocks[:end])).mean())
                > sequential_half_width(means)
                for end in ends[7:]
            )
    return {
        "bed": bed.name,
        "groups": count,
        "repeats": repeats,
        "coverage_old_new": (hits / repeats).tolist(),
        "race_type1_old_new": (wrong / repeats).tolist(),
        "error_ratio": float(np.median(ratio)),
    }


def covered_in_full(count: int, sizes: str, repeats: int) -> dict[str, Any]:
    """The same with the whole estimator and race, on symbols whose frequencies vary by group.

    Frequencies of a group are Dirichlet with equal parameters, and the models give every symbol a
    fixed probability: the true scores of both are known, and equal, as one has the other's
    probabilities in reverse order.
    """
    length, model = 32, np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    log_probs = [lambda x, m, q=q: np.log(q)[x] for q in (model, model[::-1])]
    truth, hits, wrong = length * np.log(model).mean(), np.zeros(2), np.zeros(2)
    for seed in range(repeats):
        rng = np.random.default_rng([count, seed])
        each = group_sizes(rng, count, sizes)
        groups = np.repeat(np.arange(count), each)
        p_GV = rng.dirichlet(np.full(6, 15.0), count)
        tokens = np.concatenate(
            [rng.choice(6, (m, length), p=p) for m, p in zip(each, p_GV, strict=True)]
        )
        for which, known in enumerate((None, groups)):
            found = estimate_lml(log_probs[0], tokens, groups=known, seed=seed, batch_size=4096)
            low, high = found.interval()
            hits[which] += low <= truth <= high
            block = BLOCK if known is None or count >= 16 else 2
            with suppress(ValueError):  # fewer than 8 blocks decide nothing
                raced = compare_lml(
                    *log_probs, tokens, groups=known, seed=seed, block=block, least=1
                )
                wrong[which] += raced.verdict != "undecided"
    return {
        "bed": f"whole estimator, {sizes}",
        "groups": count,
        "repeats": repeats,
        "coverage_old_new": (hits / repeats).tolist(),
        "race_type1_old_new": (wrong / repeats).tolist(),
        "error_ratio": None,
    }


# --- cost --------------------------------------------------------------------------------------


def cost(sizes: Sizes) -> dict[str, Any]:
    """Seconds of the estimator itself, compared with those of its forwards."""
    trained = characters(sizes.training_steps)
    tokens, inside, model = trained.sample(1024, 5), 0.0, trained.log_prob(0)

    def timed(tokens_BD: Any, mask_BD: Any) -> Any:
        nonlocal inside
        began = time.perf_counter()
        out = model(tokens_BD, mask_BD)
        inside += time.perf_counter() - began
        return out

    shares = []
    for seed in range(4):
        inside, began = 0.0, time.perf_counter()
        estimate_lml(timed, tokens, seed=seed, covariates=trained.counts, batch_size=128)
        shares.append((time.perf_counter() - began - inside) / inside)
    return {"share": float(np.median(shares)), "range": [min(shares), max(shares)],
            "model": "ModernBERT 64 x 2, 84 thousand parameters"}  # fmt: skip


PARTS = ("variance", "decide", "coverage", "type1", "sudoku", "tails", "ratios", "groups", "cost")


def measure(sizes: Sizes, parts: list[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}

    def beds(*exact: Bed) -> list[Bed]:
        return [*exact, character_bed(sizes.training_steps)]

    if "variance" in parts:
        figures["variance"] = []
        for bed in beds(hmm_bed(), ppca_bed()):
            repeats = sizes.repeats if bed.truth else sizes.character_repeats
            for k in (1, 4):
                row = variance(bed, k, repeats)
                figures["variance"].append(row)
                print(
                    f"variance  {bed.name:<17} k={k}  ratio {row['ratio']:.1f} "
                    f"(± {100 * row['spread']:.0f} %), after a pilot {row['after_pilot']:.1f}, "
                    f"without covariates {row['without_covariates']:.1f}",
                    flush=True,
                )
    if "decide" in parts:
        figures["decide"] = [decide_characters(sizes, nats) for nats in (5.0, 1.5)]
        for found in figures["decide"]:
            print(
                f"decide    {found['difference_nats']:.1f} nats: {found['ours_median']:.0f} "
                f"forwards per model {found['ours_range']} ({found['ours_right']} of "
                f"{found['races']} right), naive {found['naive_median']:.0f} "
                f"{found['naive_range']} ({found['naive_right']} right): ratio "
                f"{found['ratio']:.0f}; variance of the difference 1/{found['variance_ratio']:.0f}",
                flush=True,
            )
    if "coverage" in parts:
        figures["coverage"] = []
        small = hmm_bed(16, 4, 6), ppca_bed(20, 2, 0.3)
        # The true value of the character model is unknown; finding it takes 60,000 forwards.
        for bed in small if sizes is QUICK else beds(*small):
            for kind in ("population", "fixed"):
                row = coverage(bed, kind, sizes.coverage)
                figures["coverage"].append(row)
                print(
                    f"coverage  {bed.name:<17} {kind:<10} {100 * row['coverage']:.1f} % of "
                    f"{row['repeats']}",
                    flush=True,
                )
    if "type1" in parts:
        found = figures["type1"] = type1(sizes.type1)
        print(f"type I    {100 * found['rate']:.1f} % of {found['repeats']} races", flush=True)
    if "sudoku" in parts:
        figures["sudoku"] = []
        for n in (16, 30):
            for k, counts in ((1, False), (2, False), (8, False), (8, True)):
                row = sudoku(sizes.small * (1 if k == 8 else 4), n, k, counts)
                figures["sudoku"].append(row)
                old, new = zip(
                    row["bias_old_new"],
                    row["bias_over_se_old_new"],
                    row["coverage_old_new"],
                    strict=True,
                )
                for rule, (bias, z, share) in (("old", old), ("new", new)):
                    print(
                        f"sudoku    n={n} k={k} {row['guesses']:<8} {rule}: bias {bias:+.3f} nats "
                        f"({z:+.1f} SE), coverage {100 * share:.1f} %",
                        flush=True,
                    )
    if "tails" in parts:
        figures["tails"] = [
            heavy_tails(sizes.small, name, n) for name in DIFFERENCES for n in (1024, 4096)
        ]
        for row in figures["tails"]:
            (old, new), (old_n, new_n) = row["decided_old_new"], row["median_old_new"]
            print(
                f"tails     {row['differences']:<21} {row['sequences']} sequences: decided "
                f"{100 * old:.1f} -> {100 * new:.1f} %, after {old_n:.0f} -> {new_n:.0f}",
                flush=True,
            )
    if "ratios" in parts:
        found = figures["ratios"] = ratios(max(500, sizes.small))
        (old, new), (old_hits, new_hits) = found["width_old_new"], found["coverage_old_new"]
        print(
            f"ratios    nats per byte of {found['lines']} lines: width {old:.2f} -> {new:.2f} of "
            f"the true one, coverage {100 * old_hits:.1f} -> {100 * new_hits:.1f} %",
            flush=True,
        )
    if "groups" in parts:
        figures["groups"] = []
        beds_of_groups = [normal_groups(sizes_) for sizes_ in ("equal", "lognormal", "one large")]
        beds_of_groups += [library_groups(of) for of in ("score", "difference")]
        jobs = [
            partial(covered, bed, count, 2 * sizes.small)
            for bed in beds_of_groups
            for count in (10, 40)
        ]
        jobs += [
            partial(covered_in_full, count, sizes_, sizes.small)
            for sizes_ in ("equal", "lognormal")
            for count in (10, 40)
        ]
        for job in jobs:
            row = job()
            figures["groups"].append(row)
            old, new = row["coverage_old_new"]
            wrong_old, wrong_new = row["race_type1_old_new"]
            print(
                f"groups    {row['bed']:<27} G={row['groups']:<3} coverage {100 * old:.1f} -> "
                f"{100 * new:.1f} %, race type I {100 * wrong_old:.1f} -> {100 * wrong_new:.1f} % "
                f"of {row['repeats']}",
                flush=True,
            )
    if "cost" in parts:
        found = figures["cost"] = cost(sizes)
        print(f"cost      {100 * found['share']:.1f} % of the forwards of a {found['model']}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, under 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    figures = measure(QUICK if arguments.quick else FULL, arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
