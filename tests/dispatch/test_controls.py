"""The controls of a worker process's trials, which words reach from another thread at any time."""

from __future__ import annotations

import signal

from mptune.dispatch.base import Controls


def test_a_word_before_the_run_reaches_it():
    controls = Controls()
    controls.of(1).stop("pruned")
    assert controls.of(1).stop_requested() == "pruned"


def test_a_word_to_a_trial_that_has_ended_is_kept_nowhere():
    controls = Controls()
    controls.of(1)
    controls.end(1)
    controls.of(1).stop("pruned")
    controls.of(1).decide(False)
    assert controls.all() == []
    assert controls.of(1).stop_requested() is None
    assert controls.of(2).stop_requested() is None


def test_the_end_of_a_trial_ends_those_before_it_and_none_after():
    controls = Controls()
    for ticket in (1, 2, 3):
        controls.of(ticket)
    third = controls.of(3)
    controls.end(2)
    assert controls.all() == [third]


def test_a_signal_may_ask_what_runs_while_its_thread_holds_the_controls():
    controls = Controls()
    controls.of(1)
    before = signal.signal(signal.SIGUSR1, lambda *_: found.extend(controls.all()))
    found: list[object] = []
    try:
        with controls._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == controls.all()
