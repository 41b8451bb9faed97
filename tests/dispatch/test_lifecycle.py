"""The state machines of gangs and trials: what can happen, and that nothing else can."""

from __future__ import annotations

from enum import Enum

import pytest

from mptune.dispatch.lifecycle import (
    GANG_TRANSITIONS,
    TRIAL_TRANSITIONS,
    GangEvent,
    GangState,
    IllegalTransition,
    TrialEvent,
    TrialState,
)

MACHINES = {
    "gang": (GANG_TRANSITIONS, GangState, GangEvent, GangState.PLACING),
    "trial": (TRIAL_TRANSITIONS, TrialState, TrialEvent, TrialState.QUEUED),
}


def gang_after(*events: GangEvent) -> GangState:
    state = GangState.PLACING
    for event in events:
        state = state.after(event)
    return state


def trial_after(*events: TrialEvent) -> TrialState:
    state = TrialState.QUEUED
    for event in events:
        state = state.after(event)
    return state


E = GangEvent
READY = (E.PLACE, E.START, E.JOIN)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), GangState.PLACING),
        ((E.PLACE,), GangState.STARTING),
        ((E.PLACE, E.START), GangState.JOINING),
        ((E.START,), GangState.JOINING),
        (READY, GangState.IDLE),
        ((*READY, E.RUN), GangState.RUNNING),
        ((*READY, E.RUN, E.STOP), GangState.STOPPING),
        ((*READY, E.RUN, E.STOP, E.STOP), GangState.STOPPING),
        ((*READY, E.RUN, E.STALL), GangState.STALLED),
        ((*READY, E.RUN, E.STOP, E.STALL), GangState.STALLED),
        ((*READY, E.RUN, E.STALL, E.STOP), GangState.STALLED),
        ((*READY, E.RUN, E.END_TRIAL), GangState.FINISHING),
        ((*READY, E.RUN, E.STALL, E.END_TRIAL), GangState.FINISHING),
        ((*READY, E.RUN, E.STOP, E.END_TRIAL, E.STOP), GangState.FINISHING),
        ((*READY, E.RUN, E.END_TRIAL, E.FREE), GangState.IDLE),
        ((*READY, E.RUN, E.END_TRIAL, E.FREE, E.RUN), GangState.RUNNING),
        ((*READY, E.RUN, E.KILL), GangState.ENDED),
    ],
)
def test_the_life_of_a_gang(events: tuple[GangEvent, ...], state: GangState) -> None:
    assert gang_after(*events) is state


T = TrialEvent


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), TrialState.QUEUED),
        ((T.ASSIGN,), TrialState.STARTING),
        ((T.ASSIGN, T.RETRACT), TrialState.QUEUED),
        ((T.ASSIGN, T.RETRACT, T.ASSIGN, T.RUN), TrialState.RUNNING),
        ((T.ASSIGN, T.RUN, T.STOP), TrialState.STOPPING),
        ((T.ASSIGN, T.RUN, T.STOP, T.STOP), TrialState.STOPPING),
        ((T.END,), TrialState.ENDED),
        ((T.ASSIGN, T.RUN, T.STOP, T.END), TrialState.ENDED),
    ],
)
def test_the_life_of_a_trial(events: tuple[TrialEvent, ...], state: TrialState) -> None:
    assert trial_after(*events) is state


@pytest.mark.parametrize("kind", MACHINES)
def test_any_other_transition_raises(kind: str) -> None:
    transitions, states, events, _ = MACHINES[kind]
    for state in states:
        for event in events:
            if (state, event) not in transitions:
                with pytest.raises(
                    IllegalTransition, match=rf"{state.name} has no .* {event.name}"
                ):
                    state.after(event)


@pytest.mark.parametrize("kind", MACHINES)
def test_every_state_is_reached_every_event_counts_and_the_end_is_final(kind: str) -> None:
    transitions, states, events, first = MACHINES[kind]
    reached: set[Enum] = {first}
    while more := {t for (s, _), t in transitions.items() if s in reached} - reached:
        reached |= more
    assert reached == set(states)
    assert {event for _, event in transitions} == set(events)
    assert not [s for s, _ in transitions if s.name == "ENDED"]
    assert all(
        any(t.name == "ENDED" for (s, _), t in transitions.items() if s is state)
        for state in states
        if state.name != "ENDED"
    )


def test_a_gang_can_run_trials_once_its_ranks_have_joined() -> None:
    ready = {state for state in GangState if state.is_ready}
    before = {GangState.PLACING, GangState.STARTING, GangState.JOINING}
    assert ready == set(GangState) - before - {GangState.ENDED}
    waiting = {state for state in GangState if state.awaits_end}
    assert waiting == ready - {GangState.IDLE, GangState.FINISHING}
