"""The figures of the founding paper (Moreno-Munoz et al. 2023, arXiv 2306.00520), recomputed.

    python benchmarks/founding.py            # 1 minute
    python benchmarks/founding.py --quick    # 15 seconds
    python benchmarks/founding.py --json founding.json

1. `exp_2_area_fig1.py -n 1000 -d 200 -k 5` of github.com/pmorenoz/MPT-LML, beta = 5: the figures
   that it prints, the same with the same random numbers in double precision, its estimator with
   other seeds, and our estimator on the same data.
2. The bias of scoring at one mask count, D S(M) - log p(x): in closed form, and sampled.

Notation and shape suffixes: N sequences, D positions, B masks, K latent dimensions, L principal
sequences, P masks per mask count. Everything is in nats per sequence.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mptune.lml.covariates import GaussianCovariates
from mptune.lml.estimator import estimate_lml
from mptune.models.oracles import PPCA
from mptune.tools.verify import mask_scores

EXACT = -60.3436
FIGURES = {1: (-60.445, 0.474), 10: (-60.223, 0.130), 100: (-60.341, 0.030)}
"""P -> (mean, sd over seeds) that the founding repository prints."""

RATE_BIAS = (1.82, 1.44, 0.67, -0.80, -3.14)
"""An earlier measurement on a PPCA with D = 5 of unknown parameters: signs and trend compare."""

SEED, MASK_SEEDS = 1991, (4, 44, 444, 4444, 44444)
N, D, K, BETA = 1000, 200, 5, 5.0
CHUNK = 500


def founding_data() -> tuple[PPCA, np.ndarray]:
    """The founding model and its 1000 sequences [N, D].

    Two quirks, kept only here: the noise is one number per sequence, shared over dimensions, with
    *standard deviation* 1/beta; the model's covariance has *variance* 1/beta. Nothing is lost: the
    identity holds for every x, not only for x that the model generates.
    """
    generator = torch.Generator().manual_seed(SEED)
    loadings_DK, latent_NK, noise_N1 = (
        torch.randn(size, generator=generator).double().numpy() for size in ((D, K), (N, K), (N, 1))
    )
    return PPCA(loadings_DK, 1 / BETA), latent_NK @ loadings_DK.T + noise_N1 / BETA


class FoundingEstimator:
    """The founding estimate: for each M = 1..D the mean of S over P masks, shared by all sequences.

    The mean over sequences of a squared prediction error depends on x only through X^T X / N. So
    the L principal sequences that have the same moments, 6 here, stand for all 1000.
    """

    def __init__(self, ppca: PPCA, tokens_ND: np.ndarray) -> None:
        self.loadings_DK, self.noise = ppca.loadings_DQ, ppca.noise_variance
        _, scale, basis = np.linalg.svd(tokens_ND / sqrt(len(tokens_ND)), full_matrices=False)
        kept = scale > 1e-9 * scale[0]
        self.principal_DL = (scale[kept, None] * basis[kept]).T
        self._gram = np.einsum("dk,dl->dkl", self.loadings_DK, self.loadings_DK)
        self._cross = np.einsum("dk,dl->dkl", self.loadings_DK, self.principal_DL)

    def score(self, mask_BD: np.ndarray) -> np.ndarray:
        """(1/M) sum over the mask of log p, averaged over all sequences [B]."""
        seen_BD = (~mask_BD).astype(np.float64)
        gram_BKK = np.tensordot(seen_BD, self._gram, axes=1) / self.noise
        latent_BKK = np.linalg.inv(np.eye(gram_BKK.shape[1]) + gram_BKK)
        known_BKL = latent_BKK @ np.tensordot(seen_BD, self._cross, axes=1) / self.noise
        error_BD = ((self.principal_DL - self.loadings_DK @ known_BKL) ** 2).sum(axis=2)
        spread_BD = ((self.loadings_DK @ latent_BKK) * self.loadings_DK).sum(axis=2)
        variance_BD = self.noise + spread_BD
        log_BD = -0.5 * (np.log(2 * np.pi * variance_BD) + error_BD / variance_BD)
        return np.where(mask_BD, log_BD, 0.0).sum(axis=1) / mask_BD.sum(axis=1)

    def estimate(self, permutations: int, seed: int) -> float:
        """The sum over M, nats per sequence, with the masks of ``seed``."""
        length = len(self.loadings_DK)
        generator = torch.Generator().manual_seed(seed)
        counts = np.repeat(np.arange(1, length + 1), permutations)
        total = 0.0
        for start in range(0, counts.size, CHUNK):
            count_B = counts[start : start + CHUNK]
            orders = [torch.randperm(length, generator=generator) for _ in count_B]
            mask_BD = torch.stack(orders).argsort(1).numpy() < count_B[:, None]
            total += float(self.score(mask_BD).sum())
        return total / permutations


def founding_table(quick: bool) -> list[dict[str, Any]]:
    """Recorded and recomputed figures, the founding estimator with other seeds, and ours."""
    ppca, tokens_ND = founding_data()
    truth = float(ppca.log_marginal(tokens_ND).mean())
    founding = FoundingEstimator(ppca, tokens_ND)

    def row(name: str, forwards: int, found: Any, **recorded: float) -> dict[str, Any]:
        mean, sd = float(np.mean(found)), float(np.std(found, ddof=1))
        return {"name": name, "forwards": forwards, **recorded, "mean": mean, "sd": sd}

    rows: list[dict[str, Any]] = [{"name": "exact", "recorded": EXACT, "mean": truth}]
    for permutations, (recorded, sd) in FIGURES.items():
        found = [founding.estimate(permutations, seed) for seed in MASK_SEEDS]
        about = {"recorded": recorded, "recorded_sd": sd}
        rows.append(row(f"founding, P = {permutations}", N * D * permutations, found, **about))
    others = [founding.estimate(1, seed) for seed in range(50 if quick else 500)]
    own = row(f"founding, P = 1, {len(others)} other seeds", N * D, others)
    rows.append(own | {"z": (own["mean"] - truth) / (own["sd"] / sqrt(len(others)))})
    # Guesses come from other sequences of the same law, as training data would give them.
    covariates = GaussianCovariates.fit(ppca.sample(2000, 1))
    for forwards in (2, 20) if quick else (2, 20, 200):  # 200 are as many as P = 1 takes
        made = estimate_lml(
            ppca.log_prob,
            tokens_ND,
            forwards=forwards,
            seed=0,
            batch_size=256,
            covariates=covariates,
        )
        mean, sd = made.nats_per_sequence, made.se_fixed
        about = {"mean": mean, "sd": sd, "z": (mean - truth) / sd}
        rows.append({"name": "mptune", "forwards": made.forwards_used, **about})
    return rows


def expected_rate_bias(covariance_DD: np.ndarray) -> np.ndarray:
    """E_x[D S(x; M) - log p(x)], M = 1..D, of a normal x, in nats.

    E log p(x_j | rest) = -(1/2) log(2 pi e v_j), v_j the Schur complement, and E log p(x) likewise.
    """
    length = len(covariance_DD)
    log_volume = np.linalg.slogdet(2 * np.pi * np.e * covariance_DD)[1]
    scores_D = []
    for m in range(1, length + 1):
        scores = []
        for mask in combinations(range(length), m):
            rest = [j for j in range(length) if j not in mask]
            between = covariance_DD[np.ix_(rest, mask)]
            known = np.linalg.solve(covariance_DD[np.ix_(rest, rest)], between)
            variance = np.diag(covariance_DD)[list(mask)] - (between * known).sum(axis=0)
            scores.append(float(-0.5 * np.log(2 * np.pi * np.e * variance).mean()))
        scores_D.append(np.mean(scores))
    return length * np.array(scores_D) + 0.5 * log_volume


def rate_bias(n: int = 4000) -> dict[str, list[float]]:
    """D S(M) - log p of a PPCA with D = 5: in closed form, and from ``n`` sampled sequences."""
    ppca = PPCA.random(length=5, latent=2, noise_variance=0.1, seed=2)
    covariance = ppca.loadings_DQ @ ppca.loadings_DQ.T + ppca.noise_variance * np.eye(5)
    closed_D = expected_rate_bias(covariance)
    tokens = ppca.sample(n, 0)
    bias_ND = 5 * mask_scores(ppca, tokens, np.ones(tokens.shape, bool))
    bias_ND -= ppca.log_marginal(tokens)[:, None]
    z_D = (bias_ND.mean(axis=0) - closed_D) / (bias_ND.std(axis=0, ddof=1) / sqrt(n))
    found = {"closed form": closed_D, "sampled": bias_ND.mean(axis=0), "z": z_D}
    return {"recorded": list(RATE_BIAS), **{name: v_D.tolist() for name, v_D in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {"founding": founding_table(given.quick), "rate_bias": rate_bias()}
    keys = ("forwards", "recorded", "recorded_sd", "mean", "sd", "z")
    print(f"{'':32}", *(f"{key:>12}" for key in keys))
    for row in found["founding"]:
        cells = (f"{row[k]:,.4f}".removesuffix(".0000") if k in row else "" for k in keys)
        print(f"{row['name']:32}", *(f"{cell:>12}" for cell in cells))
    print("\nBias of scoring at one mask count, M = 1..5, nats")
    for name, values in found["rate_bias"].items():
        print(f"{name:32}", *(f"{value:+12.2f}" for value in values))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
