"""Forwards for a log-likelihood of a masked diffusion model: the accumulated estimator and LLaDA's.

    python benchmarks/llada.py [--quick]

A ModernBERT on bytes is trained here with uniform mask counts, as a masked diffusion model is. Each
request is the second half of a held-out sequence, given the first half. Methods:

ours          `estimate_rows`, what `mptune.tools.lm_eval` runs: 16 forwards of a request and one
              more with all of the continuation masked, which is counted.
count         `get_log_likelihood` of LLaDA (Nie et al. 2025, arXiv 2502.09992, Algorithm 3 and its
              published script): batches of 16 masks whose counts are evenly spaced from a random
              one, each weighted by D / M. Their evaluation draws 128.
time          equation 4 of the same paper: t ~ U(0, 1), each token masked with probability t,
              weight 1 / t.

For each, the forwards that a 95 % interval of a half-width of 0.5 % of the ELBO needs, if the
variance falls as one over the forwards: of a single request (the median over requests), and of the
mean over all requests.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.estimator import LENGTH, characters
from mptune.lml.estimator import estimate_rows, masked_sums

FORWARDS, WIDTH, Z = 16, 0.005, 1.96
FIRST = LENGTH // 2
BATCH = 128


def scored(log_prob: Any, tokens_ND: Any, mask_ND: Any) -> Any:
    """Sum of log p over each mask [N]; one without a masked position has 0."""
    parts = [slice(at, at + BATCH) for at in range(0, len(tokens_ND), BATCH)]
    return np.concatenate(
        [masked_sums(log_prob(tokens_ND[p], mask_ND[p]), mask_ND[p]) for p in parts]
    )


def by_count(log_prob: Any, tokens_ND: Any, rng: Any) -> Any:
    """One batch of LLaDA's script for each request [N], nats."""
    total_N, length = np.zeros(len(tokens_ND)), LENGTH - FIRST
    first_N = rng.integers(1, length + 1, len(tokens_ND))
    for b in range(FORWARDS):
        count_N = (np.round(first_N + b * (length / FORWARDS)).astype(int) - 1) % length + 1
        mask_ND = np.zeros(tokens_ND.shape, bool)
        order = rng.random((len(tokens_ND), length)).argsort(1).argsort(1)
        mask_ND[:, FIRST:] = order < count_N[:, None]
        total_N += length / count_N * scored(log_prob, tokens_ND, mask_ND)
    return total_N / FORWARDS


def by_time(log_prob: Any, tokens_ND: Any, rng: Any) -> Any:
    """The mean of as many independent times for each request [N], nats."""
    total_N = np.zeros(len(tokens_ND))
    for _ in range(FORWARDS):
        time_N = rng.random(len(tokens_ND))
        mask_ND = np.zeros(tokens_ND.shape, bool)
        mask_ND[:, FIRST:] = rng.random((len(tokens_ND), LENGTH - FIRST)) < time_N[:, None]
        shown = mask_ND.any(1)  # the model is not asked about nothing
        total_N[shown] += scored(log_prob, tokens_ND[shown], mask_ND[shown]) / time_N[shown]
    return total_N / FORWARDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, requests and repeats")
    quick = parser.parse_args().quick
    steps, requests, repeats = (40, 16, 6) if quick else (600, 64, 40)
    trained = characters(steps)
    log_prob, tokens_ND = trained.log_prob(0), trained.sample(requests, 0)
    observed_ND = np.broadcast_to(np.arange(LENGTH) >= FIRST, tokens_ND.shape)

    def ours(seed: int) -> Any:
        return estimate_rows(
            log_prob, tokens_ND, observed_ND, forwards=FORWARDS, seed=seed, batch_size=BATCH
        )

    began = time.perf_counter()
    nats_RN, errors_RN = map(np.array, zip(*map(ours, range(repeats)), strict=True))
    methods = {"ours": nats_RN}
    for name, method in (("count", by_count), ("time", by_time)):
        rng = np.random.default_rng(0)
        methods[name] = np.array([method(log_prob, tokens_ND, rng) for _ in range(repeats)])
    elbo_N = methods["ours"].mean(0)
    print(
        f"{requests} requests of {LENGTH - FIRST} tokens, {repeats} repeats of {FORWARDS} forwards"
    )
    print(f"ELBO {elbo_N.mean():.2f} nats per request; {time.perf_counter() - began:.0f} s")
    ratio = (errors_RN**2).mean(0) / nats_RN.var(0, ddof=1)
    print(f"stated variance of ours over the true one: median {np.median(ratio):.2f}")
    print("method  mean ELBO ± SE   one request, forwards   all, forwards of each")
    for name, found_RN in methods.items():
        mean_R = found_RN.mean(1)
        forwards = FORWARDS + (name == "ours")
        one_N = forwards * Z**2 * found_RN.var(0, ddof=1) / (WIDTH * elbo_N) ** 2
        every = forwards * Z**2 * mean_R.var(ddof=1) / (WIDTH * elbo_N.mean()) ** 2
        se = mean_R.std(ddof=1) / repeats**0.5
        print(f"{name:7} {mean_R.mean():.3f} ± {se:.3f}   {np.median(one_N):21.0f}   {every:.1f}")


if __name__ == "__main__":
    main()
