"""The states of a gang, and the events that change them.

Pure. The table lists every transition that can happen; any other one is a bug and raises. A trial
is queued as long as it has no gang; then its state is that of its gang.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class GangState(Enum):
    """What a gang does, as its driver knows."""

    PLACING = auto()  # Ray has not reserved the placement group yet
    STARTING = auto()  # Placed; processes start and import libraries
    JOINING = auto()  # All processes run; the ranks connect to each other
    IDLE = auto()  # Ready, without a running trial
    RUNNING = auto()  # All ranks run a trial
    STOPPING = auto()  # The trial was asked to stop
    STALLED = auto()  # The trial does nothing; the ranks write their stacks
    FINISHING = auto()  # Rank 0 has ended the trial; other ranks have not
    ENDED = auto()  # Its processes were killed and its resources released

    def after(self, event: GangEvent) -> GangState:
        """The state after the event.

        Raises:
            RuntimeError: `GANG_TRANSITIONS` has no such transition.
        """
        if (self, event) not in GANG_TRANSITIONS:
            raise RuntimeError(f"a gang that is {self.name} has no transition for {event.name}")
        return GANG_TRANSITIONS[self, event]

    @property
    def is_ready(self) -> bool:
        """Whether the ranks have joined, so that trials can run."""
        return self is GangState.IDLE or self is GangState.FINISHING or self.awaits_end

    @property
    def awaits_end(self) -> bool:
        """Whether a trial runs that rank 0 has not ended."""
        return self in (GangState.RUNNING, GangState.STOPPING, GangState.STALLED)


class GangEvent(Enum):
    """What changes the state of a gang."""

    PLACE = auto()  # Ray has reserved the placement group
    START = auto()  # All processes have answered
    JOIN = auto()  # All ranks are connected
    RUN = auto()  # A trial was sent to all ranks
    STOP = auto()  # The trial was asked to stop
    STALL = auto()  # The trial did nothing for too long
    END_TRIAL = auto()  # Rank 0 has reported the trial's end
    FREE = auto()  # All ranks have returned from the trial
    KILL = auto()  # The driver ends the gang


GANG_TRANSITIONS: Mapping[tuple[GangState, GangEvent], GangState] = {
    (GangState.PLACING, GangEvent.PLACE): GangState.STARTING,
    # The processes may answer before the driver has asked Ray for the placement group
    (GangState.PLACING, GangEvent.START): GangState.JOINING,
    (GangState.STARTING, GangEvent.START): GangState.JOINING,
    (GangState.JOINING, GangEvent.JOIN): GangState.IDLE,
    (GangState.IDLE, GangEvent.RUN): GangState.RUNNING,
    (GangState.RUNNING, GangEvent.STOP): GangState.STOPPING,
    (GangState.STOPPING, GangEvent.STOP): GangState.STOPPING,
    (GangState.STALLED, GangEvent.STOP): GangState.STALLED,
    # The end of the trial is on its way already
    (GangState.FINISHING, GangEvent.STOP): GangState.FINISHING,
    (GangState.RUNNING, GangEvent.STALL): GangState.STALLED,
    (GangState.STOPPING, GangEvent.STALL): GangState.STALLED,
    (GangState.RUNNING, GangEvent.END_TRIAL): GangState.FINISHING,
    (GangState.STOPPING, GangEvent.END_TRIAL): GangState.FINISHING,
    (GangState.STALLED, GangEvent.END_TRIAL): GangState.FINISHING,
    (GangState.FINISHING, GangEvent.FREE): GangState.IDLE,
    **{(s, GangEvent.KILL): GangState.ENDED for s in GangState if s is not GangState.ENDED},
}
