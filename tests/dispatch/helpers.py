"""What the dispatcher tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mptune.dispatch import Dispatcher
from mptune.dispatch.base import End
from mptune.spec.schema import Score
from mptune.trial import Control, Event, GangChanged, PrepareRequest, Rung, TrialSpec
from tests import fakes

PATIENCE_S = 120.0


def until_ended(
    dispatcher: Dispatcher, *numbers: int, go_on: Callable[[Rung], bool] = lambda rung: True
) -> list[Event]:
    """All events until these trials have ended, answering their rungs."""
    waiting, seen, give_up = set(numbers), [], time.monotonic() + PATIENCE_S
    while waiting:
        assert time.monotonic() < give_up, f"trials {waiting} did not end; events: {seen}"
        for event in dispatcher.events(1.0):
            seen.append(event)
            if isinstance(event, Rung):
                dispatcher.decide(event.number, go_on(event))
            if isinstance(event, End):
                waiting.remove(event.number)
    return seen


def until(dispatcher: Dispatcher, kind: type, number: int) -> Any:
    """The first event of this kind of this trial."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        for event in dispatcher.events(1.0):
            if isinstance(event, kind) and event.number == number:
                return event
    raise AssertionError(f"trial {number} sent no {kind.__name__}")


def ends(events: Sequence[Event]) -> dict[int, Any]:
    return {e.number: e for e in events if isinstance(e, End)}


def changes(events: Sequence[Event]) -> list[str]:
    return [e.state for e in events if isinstance(e, GangChanged)]


def prepare_request(directory: Path, **fields: Any) -> PrepareRequest:
    defaults: dict[str, Any] = {"data": {}, "score": Score(), "cache": str(directory / "cache")}
    return PrepareRequest(**{**defaults, **fields}, plan=str(directory / "plan.npz"))


class Endless(fakes.FakeWorker):
    """A worker whose trials run until they are stopped."""

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        policy = {**trial.policy, "steps": 10**9, "step_s": 0.02}
        yield from super().run(trial.model_copy(update={"policy": policy}), control)


class Silent:
    """A worker whose trials end without saying how."""

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None: ...

    def join(self, master_addr: str, master_port: int) -> None: ...

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        return iter(())

    def device_bytes(self) -> int:
        return 0

    def close(self) -> None: ...
