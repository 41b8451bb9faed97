"""One Optuna study: opened, driven, resumed and read. The one client of Optuna.

Optuna's storage is the only truth: a driver that is killed at any moment and started again with
the same command goes on (`mptune.search.driver`).
"""

import optuna

from mptune.search.budget import Budget
from mptune.search.driver import Observer, StudyDriver
from mptune.search.earlier import teach
from mptune.search.factory import TrialFactory
from mptune.study.importance import importances
from mptune.study.lock import driver_lock, is_driven
from mptune.study.opening import claim_spec, open_study
from mptune.study.pruners import make_pruner
from mptune.study.queued import (
    COMPARE_SEED,
    CONFIRM_SEED,
    Run,
    ask_comparison,
    asked_comparison,
    ended,
    enqueue_arms,
    enqueue_runs,
    requeue,
    requeue_running,
    run_key,
    set_base,
)
from mptune.study.record import best, by_score, ledger, records, spent_s, used
from mptune.study.samplers import make_sampler
from mptune.study.spend import load_spend
from mptune.study.storage import (
    compare_name,
    confirm_name,
    copy_studies,
    delete_studies,
    has_study,
    names,
    open_storage,
)

__all__ = [
    "COMPARE_SEED",
    "CONFIRM_SEED",
    "Budget",
    "Observer",
    "Run",
    "StudyDriver",
    "TrialFactory",
    "ask_comparison",
    "asked_comparison",
    "best",
    "by_score",
    "claim_spec",
    "compare_name",
    "confirm_name",
    "copy_studies",
    "delete_studies",
    "driver_lock",
    "ended",
    "enqueue_arms",
    "enqueue_runs",
    "has_study",
    "importances",
    "is_driven",
    "ledger",
    "load_spend",
    "make_pruner",
    "make_sampler",
    "names",
    "open_storage",
    "open_study",
    "records",
    "requeue",
    "requeue_running",
    "run_key",
    "set_base",
    "spent_s",
    "teach",
    "used",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)
