"""What a search looks like now, as its driver tells it: the JSON of `RunDirectory.status`.

Written for the live table, for `mptune status --json` from another terminal, and for metrics: all
three show the same. Times that lie ahead are predictions, and None where nothing is known yet.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from mptune.paths import RunDirectory, write_text
from mptune.trial import Message, StageName

STALE_S = 15.0
"""A picture older than this was left by a driver that is dead, or hangs."""


class Wait(Message):
    """Why a queued trial does not run yet."""

    kind: Literal["next", "reserved", "no_room", "behind", "no_such_node"] = Field(
        description="next: it starts now. reserved: the first that must wait, what becomes free is "
        "kept for it. no_room: as many workers are not free. behind: there is room, but the "
        "reservation would be delayed. no_such_node: it fits only with nodes that may still join"
    )
    needs: int = Field(description="workers of its gang")
    free: int = Field(description="of these, how many would fit now")
    behind: int | None = Field(None, description="number of the trial that has the reservation")

    def words(self) -> str:
        """In words for people."""
        match self.kind:
            case "next":
                return "starts now"
            case "behind":
                return f"fits, but would delay trial {self.behind}"
            case "no_such_node":
                return f"needs {self.needs}, waits for nodes to join"
            case "reserved" | "no_room":
                first = "reserved: " if self.kind == "reserved" else ""
                return f"{first}needs {self.needs}, {self.free} free"


class QueuedTrial(Message):
    """A trial that waits for room."""

    number: int
    label: str = Field(description="policy and size in words")
    workers: int
    waited_s: float | None = Field(None, description="in the queue so far")
    starts_in_s: float | None = Field(None, description="if all that run end as predicted")
    wait: Wait


class GangStatus(Message):
    """A gang of workers that stands."""

    name: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    nodes: tuple[str, ...] = Field(description="ids of the nodes that it is on")
    state: Literal["starting", "idle", "busy"]
    trial: int | None = Field(description="the trial that it runs, or starts for")
    trials: int = Field(description="that it was given so far")
    resident_bytes: int | None = Field(description="resident memory of all ranks, if asked yet")


class RunningTrial(Message):
    """A trial on its gang."""

    number: int
    label: str = Field(description="policy and size in words")
    state: Literal["starting", "training", "scoring"] = Field(
        description="starting: its gang starts, or it sets up"
    )
    workers: int
    progress: float = Field(0.0, description="of training, 0 to 1")
    loss: float | None = Field(None, description="last training loss, nats per masked position")
    tokens_per_s: float | None = None
    left_s: float | None = Field(None, description="predicted, to its end, scoring included")
    retries: int = Field(0, description="how often its machine failed it")


class Spend(Message):
    """What the study has used, running trials included, over all resumes; and its budgets."""

    seconds: float = Field(description="wall-clock")
    worker_seconds: float
    gpu_hours: float
    budget_seconds: float | None = None
    budget_worker_seconds: float | None = None
    budget_gpu_hours: float | None = None


class Forecast(Message):
    """What will have been used, and when, once the study ends; None is not known."""

    trials: int = Field(description="that will have ended: fewer than asked for under a budget")
    worker_seconds: float | None
    gpu_hours: float | None
    left_s: float | None = Field(description="to the end of the study")
    limited_by: Literal["budget_seconds", "budget_worker_seconds", "budget_gpu_hours"] | None


class Trials(Message):
    """Trials of a study by state."""

    total: int = Field(description="that were asked for")
    complete: int = 0
    pruned: int = 0
    fail: int = 0

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.fail


class BestTrial(Message):
    """The finished trial with the highest score."""

    number: int
    label: str
    nats_per_token: float


class StageEnd(Message):
    """Where a stage of the search was left that is not driven now."""

    trials: Trials
    best: BestTrial | None
    spend: Spend


class Status(Message):
    """Where one study of a search stands."""

    version: Literal[1] = 1
    time: float = Field(description="when this was so, seconds since 1970")
    study: str = Field(description="its name in the storage")
    stage: StageName
    driver: str = Field(description="`process PID on HOST`")
    stopping: bool = Field(description="it was asked to stop; trials write their checkpoints")
    trials: Trials
    best: BestTrial | None
    running: tuple[RunningTrial, ...]
    queue: tuple[QueuedTrial, ...] = Field(description="in the order of their turn")
    gangs: tuple[GangStatus, ...]
    spend: Spend
    forecast: Forecast
    metrics: str | None = Field(None, description="URL of the driver's metrics for Prometheus")
    earlier: dict[StageName, StageEnd] = Field(
        default_factory=dict, description="stages of the same search that were driven before"
    )

    def stages(self) -> dict[StageName, StageEnd]:
        """All stages that were driven, this one included."""
        here = StageEnd(trials=self.trials, best=self.best, spend=self.spend)
        return {**self.earlier, self.stage: here}

    def age_s(self, now: float) -> float:
        """Seconds since this was so; `now` in seconds since 1970."""
        return max(0.0, now - self.time)

    def in_flight(self, number: int) -> bool:
        """Whether the trial runs or waits to."""
        return number in {t.number for t in self.running} | {t.number for t in self.queue}


def write(run: RunDirectory, status: Status) -> None:
    """Replace the picture in the run directory; readers see the last one or this one."""
    write_text(run.status, status.model_dump_json(indent=2) + "\n")


def read(run: RunDirectory) -> Status | None:
    """The last picture that a driver left, however old; None if there is none that can be read."""
    try:
        return Status.model_validate_json(run.status.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
