"""The ledger under simulated time."""

from __future__ import annotations

import optuna

from mptune.search.ledger import Ledger, Work, load_spend, save_spend
from mptune.spec.schema import Resources

PAIR = Resources(workers=2, gpus_per_worker=1)


def test_workers_and_gpus_count_by_their_time_and_attempts_add_up():
    ledger = Ledger()
    ledger.begin(0, 0, PAIR)
    ledger.begin(0, 10, PAIR)  # the gang was lost and the trial began again
    ledger.end(0, 15)
    ledger.end(0, 99)  # told twice, counts once
    ledger.end(7, 99)  # never began
    assert ledger.ended == Work(30, 30)


def test_a_driver_that_dies_leaves_what_its_running_trials_had_used():
    ledger, study = Ledger(most=Work(7, 3)), optuna.create_study()
    assert load_spend(study) == (0.0, Ledger())
    ledger.begin(0, 0, PAIR)
    save_spend(study, 4.0, ledger, 10)
    assert load_spend(study) == (4.0, Ledger(Work(20, 20), Work(7, 3)))
    assert ledger.so_far(15) == Work(30, 30)


def test_the_most_of_one_trial_is_kept_and_what_runs_is_known():
    ledger = Ledger()
    for number, seconds in ((0, 5), (1, 9), (2, 3)):
        ledger.begin(number, 0, PAIR)
        assert ledger.is_running(number)
        ledger.end(number, seconds)
        assert not ledger.is_running(number)
    assert ledger.most == Work(18, 18)
