"""The status of a running search: the JSON of `RunDirectory.status`, written by its driver.

The live table, `mptune status --json` in another terminal, and the metrics all show this. Times
that lie in the future are predictions; they are None while there is nothing to predict from.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mptune.paths import RunDirectory, read_model, write_text
from mptune.trial import Message, StageName

STALE_S = 15.0
"""A status older than this was left by a driver that has died or hangs."""


class Wait(Message):
    """Why a queued trial has not started yet.

    Attributes:
        kind: next: it starts now. reserved: it is the first that must wait, and workers that become
            free are kept for it. no_room: too few workers are free. behind: there is room, but
            starting it would delay the reserved trial. no_such_node: it fits only on nodes that may
            still join.
        needs: workers of its gang.
        free: how many of these could be placed now.
        behind: number of the trial that has the reservation.
    """

    kind: Literal["next", "reserved", "no_room", "behind", "no_such_node"]
    needs: int
    free: int
    behind: int | None = None

    def words(self) -> str:
        """The reason in a few words."""
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
    """A trial that waits for free workers.

    Attributes:
        waited_s: in the queue so far.
    """

    number: int
    policy_label: str
    size_label: str
    workers: int
    waited_s: float | None = None
    wait: Wait


class GangStatus(Message):
    """A gang of workers.

    Attributes:
        nodes: ids of its nodes.
        trial: number of the trial that it runs or starts for.
        trials: number of trials that it was given so far.
    """

    name: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    nodes: tuple[str, ...]
    state: Literal["starting", "idle", "busy"]
    trial: int | None
    trials: int


class RunningTrial(Message):
    """A trial on its gang.

    Attributes:
        state: starting: its gang starts, or the trial loads data and model.
        progress: of training, 0 to 1.
        loss: last training loss, nats per masked position.
        left_s: predicted time to its end, scoring included.
        retries: restarts after faults of its machine.
    """

    number: int
    policy_label: str
    size_label: str
    state: Literal["starting", "training", "scoring"]
    workers: int
    progress: float = 0.0
    loss: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    retries: int = 0


class Spend(Message):
    """What the study has used over all resumes, running trials included, and its budgets.

    Attributes:
        seconds: wall-clock.
    """

    seconds: float
    worker_seconds: float
    gpu_hours: float
    budget_seconds: float | None = None
    budget_worker_seconds: float | None = None
    budget_gpu_hours: float | None = None


class Forecast(Message):
    """What the study will have used when it ends; None where there is no prediction.

    Attributes:
        trials: trials that will have ended; fewer than requested if a budget ends the study.
        left_s: time to the end of the study.
        limited_by: the budget that will end the study, if one will.
    """

    trials: int
    worker_seconds: float | None = None
    gpu_hours: float | None = None
    left_s: float | None = None
    limited_by: Literal["budget_seconds", "budget_worker_seconds", "budget_gpu_hours"] | None = None


class Trials(Message):
    """Trials of a study by state.

    Attributes:
        total: number of trainings requested.
        used: how many of these the trials used: one that the search paused counts for the part that
            it has trained, any other that has ended as one.
    """

    total: int
    used: float = 0.0
    complete: int = 0
    pruned: int = 0
    fail: int = 0

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.fail

    def counts(self) -> dict[str, int]:
        """The states that trials have, and the total if it is known."""
        return {state: count for state, count in self.model_dump().items() if count}


EndedBy = Literal["certainty", "worth", "trials", "budget"]
"""What ended a search: it was sure enough, going on was not worth it, its number of trials, or a
budget."""


class MoreRuns(Message):
    """What more training runs would bring on average.

    Attributes:
        trial: they are more seeds of this trial's point; None: of a point that has not run.
        gain: nats per sequence by which the recommended policy would be better.
    """

    runs: int
    trial: int | None
    gain: float
    worker_hours: float

    @property
    def per_worker_hour(self) -> float:
        return self.gain / max(self.worker_hours, 1e-9)


class Outlook(Message):
    """How sure a search is of its recommendation, and what going on would bring.

    Attributes:
        trials: trials that had ended; after the end of the search, all.
        unknown: why nothing is known, and the search does not end by itself. start: the trials that
            it begins with have not all ended. seeds: the search trained no point with two seeds, or
            its sampler asks for none. worst_domain, weights: the choice is by domains.
        recommended: number of the trial.
        candidates: points that have finished.
        delta: nats per sequence that do not matter: 1, or half a standard deviation of the
            difference between two seeds.
        within: probability that no candidate is better than the recommended by `delta`.
        unseen: probability that no point that has not run is better by `delta`, as the sampler's
            surrogate predicts; None without a surrogate.
        expected_regret: expected nats per sequence that the best candidate is better: the most that
            seeds can gain.
        more_runs: more seeds, and new points.
        wanted: search.certainty.
        worth: search.worth.
        ended_by: None: the search has not ended.
    """

    trials: int
    unknown: Literal["start", "seeds", "worst_domain", "weights"] | None = None
    recommended: int | None = None
    candidates: int = 0
    delta: float | None = None
    within: float | None = None
    unseen: float | None = None
    expected_regret: float | None = None
    more_runs: tuple[MoreRuns, ...] = ()
    wanted: float | None = None
    worth: float | None = None
    ended_by: EndedBy | None = None

    @property
    def probability(self) -> float | None:
        """That the recommended point is within `delta` of the best; None if it is not known."""
        if self.within is None:
            return None
        return self.within if self.unseen is None else self.within * self.unseen

    @property
    def undecided(self) -> bool:
        """Whether its probability is known, and too small for `search.certainty` (or 95 %)."""
        return self.probability is not None and self.probability < (self.wanted or 0.95)

    @property
    def best_more_runs(self) -> MoreRuns | None:
        """What gains most per worker-hour."""
        return max(self.more_runs, key=lambda more: more.per_worker_hour, default=None)


class StageEnd(Message):
    """The last status of a stage that is not running now.

    Attributes:
        best: as in `Status`.
    """

    trials: Trials
    best: dict[str, Any] | None
    spend: Spend


class Status(Message):
    """The status of one study of a search.

    Attributes:
        time: of this status, seconds since 1970.
        study: name of the study in the storage.
        driver: `process PID on HOST`.
        stopping: a stop was requested; trials write their checkpoints.
        best: `number`, `label` and `nats_per_token` of the finished trial with the highest score.
        queue: in the order in which they will start.
        outlook: of a search; None: of another stage.
        metrics: URL of the driver's metrics for Prometheus.
        earlier: stages of the same search that ran before.
    """

    version: Literal[1] = 1
    time: float
    study: str
    stage: StageName
    driver: str
    stopping: bool
    trials: Trials
    best: dict[str, Any] | None
    running: tuple[RunningTrial, ...]
    queue: tuple[QueuedTrial, ...]
    gangs: tuple[GangStatus, ...]
    spend: Spend
    forecast: Forecast
    outlook: Outlook | None = None
    metrics: str | None = None
    earlier: dict[StageName, StageEnd] = Field(default_factory=dict)

    def stages(self) -> dict[StageName, StageEnd]:
        """All stages that have run, this one included."""
        here = StageEnd(trials=self.trials, best=self.best, spend=self.spend)
        return {**self.earlier, self.stage: here}

    def age_s(self, now: float) -> float:
        """Age of this status; `now` in seconds since 1970."""
        return max(0.0, now - self.time)

    def in_flight(self, number: int) -> bool:
        """Whether the trial runs or is queued."""
        return number in {t.number for t in self.running} | {t.number for t in self.queue}


def write(run: RunDirectory, status: Status) -> None:
    """Replace the status file of the run; a reader sees the old one or the new one, whole."""
    write_text(run.status, status.model_dump_json(indent=2) + "\n")


def read(run: RunDirectory) -> Status | None:
    """The last status that a driver wrote, however old; None if there is no readable one."""
    return read_model(run.status, Status)
