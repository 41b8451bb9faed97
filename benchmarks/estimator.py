"""How many naive forwards is one planned forward worth? Measured where log p(x) is known exactly.

    python benchmarks/estimator.py [--quick] [--json FILE]

For fixed sequences of an HMM (D = 64) and of a PPCA (D = 128), both estimators are repeated over
seeds at equal forwards. The naive one draws M uniformly and independently and averages
(D/M) sum over the mask of log p. Printed: variance of the naive one over mean squared error of
ours, against the exact log marginal, for k forwards per sequence.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mptune.lml import (
    Covariates,
    GaussianCovariates,
    LMLPlan,
    TokenCovariates,
    estimate_lml,
    masked_sums,
)
from mptune.models.oracles import HMM, PPCA

FORWARDS = 512
TRAINING_SEQUENCES = 2000


@dataclass(frozen=True)
class Bed:
    name: str
    oracle: HMM | PPCA
    covariates: Covariates


def hmm_bed() -> Bed:
    hmm = HMM.random(states=8, vocabulary_size=16, length=64, seed=1)
    train = hmm.sample(TRAINING_SEQUENCES, seed=2)
    return Bed("HMM D=64", hmm, TokenCovariates.fit(train, None, 16))


def ppca_bed() -> Bed:
    ppca = PPCA.random(length=128, latent=4, noise_variance=0.2, seed=1)
    return Bed("PPCA D=128", ppca, GaussianCovariates.fit(ppca.sample(TRAINING_SEQUENCES, seed=2)))


def naive_variance(bed: Bed, tokens: Any, forwards: int, repeats: int) -> float:
    """Variance of the naive mean over ``forwards`` evaluations of each sequence."""
    rng, length = np.random.default_rng(0), tokens.shape[1]
    scores = []
    for _ in range(repeats):
        count = rng.integers(1, length + 1, len(tokens))
        mask = rng.random(tokens.shape).argsort(axis=1).argsort(axis=1) < count[:, None]
        scores.append(length / count * masked_sums(bed.oracle.log_prob(tokens, mask), mask))
    return float(np.var(scores, axis=0, ddof=1).mean() / (len(tokens) * forwards))


def squared_error(bed: Bed, tokens: Any, plans: list[LMLPlan], covariates: bool) -> float:
    truth = bed.oracle.log_marginal(tokens).mean()
    chosen = bed.covariates if covariates else None
    errors = [
        estimate_lml(
            bed.oracle.log_prob, tokens, plan=plan, batch_size=256, covariates=chosen
        ).nats_per_sequence
        - truth
        for plan in plans
    ]
    return float(np.mean(np.square(errors)))


def measure(bed: Bed, forwards: int, repeats: int) -> dict[str, Any]:
    tokens = bed.oracle.sample(FORWARDS // forwards, seed=3)
    shown = np.ones(tokens.shape, bool)
    pilot = estimate_lml(
        bed.oracle.log_prob, tokens, forwards=forwards, seed=10**6, covariates=bed.covariates
    )
    default = [LMLPlan.make(shown, forwards=forwards, seed=s) for s in range(repeats)]
    refined = [
        LMLPlan.make(shown, forwards=forwards, seed=s, residual_variance=pilot.residual_variance)
        for s in range(repeats)
    ]
    naive = naive_variance(bed, tokens, forwards, repeats * forwards)
    return {
        "bed": bed.name,
        "forwards_per_sequence": forwards,
        "sequences": len(tokens),
        "repeats": repeats,
        "naive_sd_nats": naive**0.5,
        "ratio_without_covariates": naive / squared_error(bed, tokens, default, False),
        "ratio": naive / squared_error(bed, tokens, default, True),
        "ratio_after_pilot": naive / squared_error(bed, tokens, refined, True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 repeats rather than 400")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    repeats = 40 if arguments.quick else 400
    figures = [measure(bed(), k, repeats) for bed in (hmm_bed, ppca_bed) for k in (1, 4)]
    for row in figures:
        print(
            f"{row['bed']:<11} k={row['forwards_per_sequence']}  "
            f"variance ratio {row['ratio']:.1f}, after a pilot {row['ratio_after_pilot']:.1f}, "
            f"without covariates {row['ratio_without_covariates']:.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
