"""The status of a search as metrics of its Ray cluster, for Prometheus.

Ray puts `ray_` before each name. The driver sets them about once a second, so the node that it
runs on serves them.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from mptune.status import Status
from mptune.trial import Event, Failed, Started

TURNAROUND_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Upper bounds of the buckets, in seconds."""


@dataclass(frozen=True)
class Metric:
    """One metric; all have the label `study`, too."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    label: str | None = None

    def make(self) -> Any:
        keys = ("study", *([self.label] if self.label else []))
        if self.kind == "histogram":
            return Histogram(self.name, self.meaning, boundaries=TURNAROUND_S, tag_keys=keys)
        kind = Counter if self.kind == "counter" else Gauge
        return kind(self.name, self.meaning, tag_keys=keys)


TRIALS = Metric("mptune_study_trials", "gauge",
                "trials now: complete, pruned, fail, running, queued", "state")  # fmt: skip
REQUESTED = Metric("mptune_study_trials_requested", "gauge", "trials that were requested")
ENDED = Metric("mptune_trials_total", "counter",
               "trials that ended under this driver: complete, pruned, fail", "state")  # fmt: skip
FAULTS = Metric("mptune_trial_faults_total", "counter",
                "failed attempts, including those that are run again", "reason")  # fmt: skip
GANGS = Metric("mptune_gangs", "gauge", "gangs: starting, idle, busy", "state")
RESIDENT = Metric("mptune_gangs_resident_bytes", "gauge", "resident memory of all gangs' ranks")
QUEUE = Metric("mptune_queue_length", "gauge", "trials that wait for free workers")
WAIT = Metric(
    "mptune_queue_longest_wait_seconds", "gauge", "the longest wait of a trial that waits now"
)
TOKENS = Metric("mptune_tokens_per_second", "gauge", "sum over all trials that train")
TURNAROUND = Metric("mptune_trial_turnaround_seconds", "histogram",
                    "from the end of a gang's trial to the first step of its next one")  # fmt: skip
BEST = Metric("mptune_best_nats_per_token", "gauge", "score of the best finished trial")

_SPEND: dict[str, Metric] = {
    "worker_seconds": Metric("mptune_spent_worker_seconds", "gauge",
                             "used so far, including running trials, over all resumes"),
    "gpu_hours": Metric("mptune_spent_gpu_hours", "gauge", "likewise"),
    "seconds": Metric("mptune_spent_seconds", "gauge", "wall clock of drivers, over all resumes"),
    "budget_worker_seconds": Metric(
        "mptune_budget_worker_seconds", "gauge", "the budget, if there is one"
    ),
    "budget_gpu_hours": Metric("mptune_budget_gpu_hours", "gauge", "the budget, if there is one"),
    "budget_seconds": Metric("mptune_budget_seconds", "gauge", "the budget, if there is one"),
}  # fmt: skip
"""Of `Spend`."""

_FORECAST: dict[str, Metric] = {
    "worker_seconds": Metric("mptune_forecast_worker_seconds", "gauge",
                             "predicted to be used at the study's end"),
    "gpu_hours": Metric("mptune_forecast_gpu_hours", "gauge", "likewise"),
    "left_s": Metric("mptune_forecast_left_seconds", "gauge", "predicted, to the study's end"),
}  # fmt: skip
"""Of `Forecast`."""

METRICS = (
    TRIALS, REQUESTED, ENDED, FAULTS, GANGS, RESIDENT, QUEUE, WAIT, TOKENS, TURNAROUND, BEST,
    *_SPEND.values(), *_FORECAST.values(),
)  # fmt: skip


@dataclass
class SearchMetrics:
    """Ray's instruments, made once Ray runs. Events are counted at the next `publish`."""

    _made: dict[str, Any] = field(default_factory=lambda: {m.name: m.make() for m in METRICS})
    _ended: dict[str, Counts[str]] = field(default_factory=dict)
    """Study -> trials by state, as published last."""
    _faults: list[str] = field(default_factory=list)
    _turnarounds: list[float] = field(default_factory=list)

    def count(self, event: Event) -> None:
        """Note what the status does not show: faults and turnarounds between two of them."""
        if isinstance(event, Failed):
            self._faults.append(event.reason)
        if isinstance(event, Started) and event.turnaround_s is not None:
            self._turnarounds.append(event.turnaround_s)

    def publish(self, status: Status) -> None:
        """Set every gauge, and add to the counters what has happened since the last status.

        The first status of a study has the trials of earlier drivers: they are not counted.
        """
        study = {"study": status.study}
        for metric, value, label in _gauges(status):
            labels = {metric.label: label} if metric.label else {}
            self._made[metric.name].set(value, tags={**study, **labels})
        ended = Counts(status.trials.model_dump(exclude={"total"}))
        for state, new in (ended - self._ended.get(status.study, ended)).items():
            self._made[ENDED.name].inc(new, tags={**study, "state": state})
        self._ended[status.study] = ended
        for reason in self._faults:
            self._made[FAULTS.name].inc(1, tags={**study, "reason": reason})
        for seconds in self._turnarounds:
            self._made[TURNAROUND.name].observe(max(seconds, 1e-9), tags=study)
        self._faults, self._turnarounds = [], []


def _gauges(status: Status) -> Iterator[tuple[Metric, float, str]]:
    """(metric, value, value of its own label)."""
    trials = status.trials
    counts = {**trials.model_dump(exclude={"total"}), "running": len(status.running),
              "queued": len(status.queue)}  # fmt: skip
    gangs = Counts(gang.state for gang in status.gangs)
    yield from ((TRIALS, n, state) for state, n in counts.items())
    yield from ((GANGS, gangs[state], state) for state in ("starting", "idle", "busy"))
    yield REQUESTED, trials.total, ""
    yield RESIDENT, sum(gang.resident_bytes or 0 for gang in status.gangs), ""
    yield QUEUE, len(status.queue), ""
    yield WAIT, max((t.waited_s or 0.0 for t in status.queue), default=0.0), ""
    training = [t for t in status.running if t.state == "training"]
    yield TOKENS, sum(t.tokens_per_s or 0.0 for t in training), ""
    if status.best:
        yield BEST, status.best["nats_per_token"], ""
    for of, part in ((_SPEND, status.spend), (_FORECAST, status.forecast)):
        for name, metric in of.items():
            if (value := getattr(part, name)) is not None:
                yield metric, value, ""
