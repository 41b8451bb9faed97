"""What a dispatcher is: the study's only view of where trials run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mptune.spec.schema import Resources
from mptune.status import GangStatus, QueuedTrial, Status
from mptune.trial import Device, Event, Prepared, PrepareRequest, StopReason, TrialSpec


@dataclass(frozen=True)
class DispatchState:
    """The gangs, and what waits for room in the order of its turn."""

    gangs: tuple[GangStatus, ...] = ()
    queue: tuple[QueuedTrial, ...] = ()
    metrics: str | None = None
    """URL at which Prometheus finds what was published, if it does."""


class DurationForecast(Protocol):
    """Predicts how long trials take; admission orders the queue and fills gaps by it."""

    def seconds(self, trial: TrialSpec) -> float | None:
        """Seconds that a whole trial takes on its gang; None if that is not known."""

    def remaining(self, number: int, now: float) -> float | None:
        """Seconds from `now` (monotonic) to the end of a running trial; None if not known."""


class NoForecast:
    """The forecast where no duration is known."""

    def seconds(self, trial: TrialSpec) -> float | None:
        return None

    def remaining(self, number: int, now: float) -> float | None:
        return None


class Dispatcher(Protocol):
    """Runs trials on gangs of workers. One trial number is in flight at most once."""

    def warm_up(self) -> None:
        """Let workers start while the caller does something else; does not wait for them."""

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Prepare the data and freeze the plan on a worker; blocks.

        Raises:
            InputError: the data is missing or broken.
            DispatchError: no worker could be started.
        """

    def capacity(self, flying: Sequence[Resources] = ()) -> int:
        """How many trials can be in flight with what the cluster holds now (at least 1).

        `flying` is what those need that are; more of them fit only where these leave room for the
        smallest gang.
        """

    def device(self, resources: Resources) -> Device:
        """What a worker of such a gang would compute on, the largest that it could get.

        Takes none of it, and asks every node once.
        """

    def submit(self, trial: TrialSpec) -> None:
        """Queue a trial; it starts when admitted."""

    def events(self, timeout_s: float) -> list[Event]:
        """The next events, oldest first: waits up to `timeout_s` for the first one.

        Every submitted trial ends with exactly one of Finished, Stopped or Failed.
        """

    def decide(self, number: int, go_on: bool) -> None:
        """Answer the trial's last Rung: go on, or stop as pruned."""

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a running trial to stop soon, or drop a queued one; ends in Stopped.

        A trial that has been scored meanwhile ends in Finished.
        """

    def state(self) -> DispatchState:
        """Where gangs and queue stand now; does not block."""

    def publish(self, status: Status) -> None:
        """Let the metrics of the cluster, if it has any, say this."""

    def address(self) -> str | None:
        """Of the shared Ray cluster that it runs on; None on machines of its own."""

    def close(self) -> None:
        """Stop everything that was started here and leave no process behind."""
