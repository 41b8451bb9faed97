"""The score: an estimate of log p(x) of a masked model, from any ``log_prob(tokens, mask)``."""
