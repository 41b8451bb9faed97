"""Optuna: storage, records, queue, samplers and the lease of a study. The one client of Optuna."""

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
