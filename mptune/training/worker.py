"""One rank of a gang: prepares data and runs trials in turn."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mptune.errors import one_line
from mptune.paths import TrialDirectory, write_text
from mptune.training import engine, execution
from mptune.training.execution import ScoringData
from mptune.training.ranks import Ranks, is_agreed, reason_of
from mptune.trial import Control, Event, Failed, Prepared, PrepareRequest, TrialSpec


class Worker:
    """One rank. It lives as long as its gang and runs many trials in turn."""

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._ranks: Ranks | None = None
        self._data: ScoringData | None = None
        engine.import_deepspeed()

    def join(self, master_addr: str, master_port: int) -> None:
        """Meet the other ranks; blocks until all are there."""
        self._ranks = engine.join(
            self.rank, self.world_size, self.local_rank, master_addr, master_port
        )

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Make the token table and the scoring plan, see `execution.prepare`.

        Raises:
            InputError: the data is missing or broken, or the plan belongs to other data.
        """
        return execution.prepare(request)

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """Run one trial, on all ranks at once. Rank 0 yields its events, the others none.

        A failure that all ranks know of ends `run` on all of them, and rank 0 yields `Failed`. One
        that only this rank knows of does so on rank 0 and is raised on the others; its peers may
        then wait for it in vain, and the gang must be ended.
        """
        journal = Journal(trial) if self.rank == 0 else None
        try:
            if self._ranks is None:
                raise RuntimeError("the worker has not joined its gang")
            with self._ranks.failing_together():
                self._data = execution.ScoringData.of(trial, self._data)
            for event in execution.events(trial, self._ranks, control, self._data):
                if journal is not None:
                    journal.add(event)
                    yield event
        except Exception as error:
            if journal is not None:
                failed = Failed(
                    number=trial.number, reason=reason_of(error), detail=one_line(error)
                )
                journal.add_failure(failed, error)
                yield failed
            elif not is_agreed(error):
                raise
        finally:
            engine.reclaim()

    def device_bytes(self) -> int:
        """GPU memory that this process holds."""
        return engine.device_bytes()

    def close(self) -> None:
        """Leave the gang."""
        self._data = None
        engine.leave()


class Journal:
    """What a trial's directory keeps while it runs: its spec, events, and a traceback."""

    def __init__(self, trial: TrialSpec) -> None:
        self._files = TrialDirectory(Path(trial.directory))
        write_text(self._files.spec, trial.model_dump_json(indent=2) + "\n")

    def add(self, event: Event) -> None:
        """Append the event."""
        with self._files.events.open("a", encoding="utf-8") as lines:
            lines.write(event.model_dump_json() + "\n")

    def add_failure(self, failed: Failed, error: Exception) -> None:
        """Write the failure down if the disk allows; the event is reported in any case."""
        with suppress(OSError):
            write_text(self._files.traceback, "".join(traceback.format_exception(error)))
        with suppress(OSError):
            self.add(failed)
