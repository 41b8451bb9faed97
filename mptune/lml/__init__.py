"""The score: an estimate of log p(x) of a masked model, from any ``log_prob(tokens, mask)``."""

from mptune.lml.adaptive import (
    LMLComparison,
    Side,
    compare_lml,
    estimate_to_target,
    race_lml,
    refine_lml,
    se_per_position,
    sequential_half_width,
)
from mptune.lml.covariates import Covariates, GaussianCovariates, TokenCovariates, position_controls
from mptune.lml.diagnostics import OrderGap, RateScore, order_gap, score_at_rate
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
    "LMLComparison",
    "LMLEstimate",
    "LMLPlan",
    "LogProb",
    "MPTCurve",
    "NonFiniteLogProb",
    "OrderGap",
    "RateScore",
    "Side",
    "TokenCovariates",
    "VarianceLaw",
    "check_finite",
    "compare_lml",
    "estimate_from_sums",
    "estimate_lml",
    "estimate_to_target",
    "masked_sums",
    "order_gap",
    "position_controls",
    "race_lml",
    "refine_lml",
    "score_at_rate",
    "se_per_position",
    "sequential_half_width",
]
