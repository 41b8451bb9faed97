"""The score: an estimate of log p(x) of a masked model, from any ``log_prob(tokens, mask)``."""

from mptune.lml.covariates import Covariates, GaussianCovariates, TokenCovariates
from mptune.lml.estimator import (
    LMLEstimate,
    LogProb,
    MPTCurve,
    NonFiniteLogProb,
    check_finite,
    estimate_from_sums,
    estimate_lml,
    masked_sums,
)
from mptune.lml.plan import DEFAULT_VARIANCE, LMLPlan, VarianceLaw

__all__ = [
    "DEFAULT_VARIANCE",
    "Covariates",
    "GaussianCovariates",
    "LMLEstimate",
    "LMLPlan",
    "LogProb",
    "MPTCurve",
    "NonFiniteLogProb",
    "TokenCovariates",
    "VarianceLaw",
    "check_finite",
    "estimate_from_sums",
    "estimate_lml",
    "masked_sums",
]
