"""Families whose log p(x) and conditionals are known exactly: the beds that scores are tested on.

Each has ``sample(n, seed) -> tokens [n, D]``, ``log_prob(tokens_BD, mask_BD) -> [B, D]`` (log p of
the true value at masked positions given the unmasked ones, nats) and ``log_marginal(tokens_ND) ->
[N]`` (nats per sequence). Missing values are negative tokens, or NaN for real values.
"""

from mptune.models.oracles.hmm import HMM
from mptune.models.oracles.joint import Joint
from mptune.models.oracles.markov import MarkovChain
from mptune.models.oracles.ppca import PPCA

__all__ = ["HMM", "PPCA", "Joint", "MarkovChain"]
