"""The states of gangs: what can happen, and that nothing else can."""

from __future__ import annotations

import pytest

from mptune.dispatch.lifecycle import (
    GANG_TRANSITIONS,
    GangEvent,
    GangState,
)


def gang_after(*events: GangEvent) -> GangState:
    state = GangState.PLACING
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


def test_any_other_transition_raises() -> None:
    for state in GangState:
        for event in GangEvent:
            if (state, event) not in GANG_TRANSITIONS:
                with pytest.raises(RuntimeError, match=rf"{state.name} has no .* {event.name}"):
                    state.after(event)


def test_every_state_is_reached_every_event_counts_and_the_end_is_final() -> None:
    reached = {GangState.PLACING}
    while more := {t for (s, _), t in GANG_TRANSITIONS.items() if s in reached} - reached:
        reached |= more
    assert reached == set(GangState)
    assert {event for _, event in GANG_TRANSITIONS} == set(GangEvent)
    ending = {s for (s, _), t in GANG_TRANSITIONS.items() if t is GangState.ENDED}
    assert ending == set(GangState) - {GangState.ENDED} == {s for s, _ in GANG_TRANSITIONS}


def test_a_gang_can_run_trials_once_its_ranks_have_joined() -> None:
    ready = {state for state in GangState if state.is_ready}
    before = {GangState.PLACING, GangState.STARTING, GangState.JOINING}
    assert ready == set(GangState) - before - {GangState.ENDED}
    waiting = {state for state in GangState if state.awaits_end}
    assert waiting == ready - {GangState.IDLE, GangState.FINISHING}
