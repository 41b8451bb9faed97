"""When a search is enough, on simulated candidates whose true scores are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mptune.analysis.outlook import ended_by
from mptune.analysis.selection import RUNS, expected_gains, search_selection
from mptune.spec.schema import Search
from mptune.status import MoreRuns, Outlook
from tests.analysis.test_selection import searched


def test_expected_gains_are_those_of_simulated_runs() -> None:
    rng = np.random.default_rng(0)
    mean_A, noise_A = np.array([0.0, -0.4, -1.0]), np.array([1.0, 0.5, 2.0])
    root_AA = rng.normal(size=(3, 3))
    S_AA = root_AA @ root_AA.T
    found_NA = expected_gains(mean_A, S_AA, noise_A)
    Z = 400_000
    theta_ZA = mean_A + rng.normal(size=(Z, 3)) @ root_AA.T
    for n, runs in enumerate(RUNS):
        for a in range(3):
            variance = S_AA[a, a] + noise_A[a] / runs
            y_Z = theta_ZA[:, a] + math.sqrt(noise_A[a] / runs) * rng.normal(size=Z)
            posterior_ZA = mean_A + (y_Z - mean_A[a])[:, None] / variance * S_AA[a]
            chosen_Z = posterior_ZA.argmax(1)
            gain = theta_ZA[np.arange(Z), chosen_Z].mean() - theta_ZA[:, 0].mean()
            assert found_NA[n, a] == pytest.approx(gain, abs=0.01)
    assert (np.diff(found_NA, axis=0) > 0).all()


def test_within_delta_is_surer_than_best_and_delta_is_a_nat_or_half_a_seed_difference() -> None:
    rng = np.random.default_rng(1)
    points = searched(rng, np.array([0.0, 0.02, -3.0]), 0.5, (0, 1, 2))
    plain, nat = search_selection(points), search_selection(points, nat=2.0)
    assert plain.delta is not None
    assert plain.seed_sd is not None
    low, high = plain.seed_sd
    assert low <= plain.delta * math.sqrt(2) <= high
    assert nat.delta == 2.0
    chosen = nat.candidate(nat.recommended)
    assert chosen is not None
    assert chosen.probability is not None
    assert nat.within is not None
    assert plain.within is not None
    assert chosen.probability < plain.within < nat.within
    assert [gain.seeds for gain in plain.gains] == list(RUNS)
    assert all(gain.trial in (0, 1) for gain in plain.gains)
    assert plain.gains[-1].nats_per_token < chosen.expected_regret * 1.05


def sure(**changes: object) -> Outlook:
    more_runs = (
        MoreRuns(runs=1, trial=3, gain=0.01, worker_hours=0.1),
        MoreRuns(runs=4, trial=3, gain=0.2, worker_hours=0.4),
    )
    values = {"trials": 9, "within": 0.97, "delta": 1.0, "more_runs": more_runs}
    return Outlook.model_validate({**values, **changes})


def test_what_ends_a_search() -> None:
    assert ended_by(sure(), Search()) == "certainty"
    assert ended_by(sure(within=0.949), Search()) is None
    assert ended_by(sure(), Search(certainty=None)) is None
    assert ended_by(sure(), Search(certainty=0.98)) is None
    assert ended_by(sure(unseen=0.0), Search()) is None
    assert ended_by(sure(unseen=0.97), Search()) is None, "what has not run may be better"
    assert ended_by(sure(), Search(certainty=None, worth=0.51)) == "worth"
    assert ended_by(sure(), Search(certainty=None, worth=0.49)) is None, "four seeds gain enough"
    assert ended_by(Outlook(trials=9, unknown="seeds"), Search(worth=100.0)) is None
