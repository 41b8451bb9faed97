"""The ledger under simulated time."""

from __future__ import annotations

import pytest

from mptune.ledger import Ledger
from mptune.spec import Resources

PAIR = Resources(workers=2, gpus_per_worker=0.5)


def test_workers_and_gpus_count_by_their_time_and_attempts_add_up():
    ledger = Ledger()
    ledger.begin(0, 0, PAIR)
    ledger.begin(0, 10, PAIR)  # the gang was lost and the trial began again
    ledger.end(0, 15)
    ledger.end(0, 99)  # told twice, counts once
    ledger.end(7, 99)  # never began
    assert (ledger.worker_s, ledger.gpu_s) == (30, 15)
    assert Ledger.from_json(ledger.as_json()) == ledger


def test_a_trial_that_would_pass_the_budget_is_not_allowed():
    ledger = Ledger(worker_s=60, gpu_s=30, most_worker_s=20, most_gpu_s=10)
    assert ledger.allows(0, 0, 80, None)
    assert not ledger.allows(0, 0, 79, None)
    assert not ledger.allows(0, 1, 80, None)  # one is queued, and will take its share
    assert ledger.allows(0, 0, None, 40 / 3600)
    assert not ledger.allows(0, 0, None, 39 / 3600)


@pytest.mark.parametrize(("now", "allowed"), [(5, True), (30, False)])
def test_a_running_trial_counts_as_the_longest_or_as_longer(now, allowed):
    ledger = Ledger(worker_s=20, most_worker_s=20)
    ledger.begin(1, 0, PAIR)
    assert ledger.allows(now, 1, 60, None) is allowed
