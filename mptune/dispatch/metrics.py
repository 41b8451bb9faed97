"""The status of a search as metrics of its Ray cluster, for Prometheus.

Ray puts `ray_` before each name. The driver sets them about once a second, so the node that it
runs on serves them.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from mptune.status import Status
from mptune.trial import Event, Failed, Started

TURNAROUND_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Upper bounds of the buckets, in seconds."""


@dataclass(frozen=True)
class Metric:
    """One metric; all have the label `study`, too.

    Attributes:
        read: of a gauge, its value in a status, or its values by label; None is not set.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    label: str | None = None
    read: Callable[[Status], Mapping[str, float] | float | None] = lambda _: None

    def make(self) -> Any:
        keys = ("study", *([self.label] if self.label else []))
        if self.kind == "histogram":
            return Histogram(self.name, self.meaning, boundaries=TURNAROUND_S, tag_keys=keys)
        kind = Counter if self.kind == "counter" else Gauge
        return kind(self.name, self.meaning, tag_keys=keys)


def _gauge(name: str, meaning: str, read: Any, label: str | None = None) -> Metric:
    return Metric(f"mptune_{name}", "gauge", meaning, label, read)


def _trials(status: Status) -> dict[str, float]:
    ended = status.trials.model_dump(exclude={"total", "used"})
    return {**ended, "running": len(status.running), "queued": len(status.queue)}


def _gangs(status: Status) -> dict[str, float]:
    states = [gang.state for gang in status.gangs]
    return {state: states.count(state) for state in ("starting", "idle", "busy")}


ENDED = Metric("mptune_trials_total", "counter",
               "trials this driver ended or paused: complete, pruned, fail", "state")  # fmt: skip
FAULTS = Metric("mptune_trial_faults_total", "counter",
                "failed attempts, including those that are run again", "reason")  # fmt: skip
TURNAROUND = Metric("mptune_trial_turnaround_seconds", "histogram",
                    "from the end of a gang's trial to the first step of its next one")  # fmt: skip

METRICS = (
    _gauge("study_trials", "trials now: complete, pruned, fail, running, queued", _trials, "state"),
    _gauge("study_trials_requested", "whole trainings requested", attrgetter("trials.total")),
    _gauge("study_trials_used", "of these, used: a paused one by part", attrgetter("trials.used")),
    ENDED,
    FAULTS,
    _gauge("gangs", "gangs: starting, idle, busy", _gangs, "state"),
    _gauge("queue_length", "trials that wait for free workers", lambda s: len(s.queue)),
    _gauge("queue_longest_wait_seconds", "the longest wait of a trial that waits now",
           lambda s: max((t.waited_s or 0.0 for t in s.queue), default=0.0)),
    _gauge("tokens_per_second", "sum over all trials that train",
           lambda s: sum(t.tokens_per_s or 0.0 for t in s.running if t.state == "training")),
    TURNAROUND,
    _gauge("best_nats_per_token", "score of the best finished trial",
           lambda s: s.best and s.best["nats_per_token"]),
    *(
        _gauge(name, meaning, attrgetter(where))
        for name, where, meaning in (
            ("spent_worker_seconds", "spend.worker_seconds",
             "used so far, including running trials, over all resumes"),
            ("spent_gpu_hours", "spend.gpu_hours", "likewise"),
            ("spent_seconds", "spend.seconds", "wall clock of drivers, over all resumes"),
            *((name, f"spend.{name}", "the budget, if there is one") for name in
              ("budget_worker_seconds", "budget_gpu_hours", "budget_seconds")),
            ("forecast_worker_seconds", "forecast.worker_seconds",
             "predicted to be used at the study's end"),
            ("forecast_gpu_hours", "forecast.gpu_hours", "likewise"),
            ("forecast_left_seconds", "forecast.left_s", "predicted, to the study's end"),
        )
    ),
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
        for metric in METRICS:
            value = metric.read(status)
            values = value if isinstance(value, Mapping) else {"": value}
            for label, number in values.items():
                if number is not None:
                    labels = {metric.label: label} if metric.label else {}
                    self._made[metric.name].set(number, tags={**study, **labels})
        ended = Counts(status.trials.model_dump(exclude={"total", "used"}))
        for state, new in (ended - self._ended.get(status.study, ended)).items():
            self._made[ENDED.name].inc(new, tags={**study, "state": state})
        self._ended[status.study] = ended
        for reason in self._faults:
            self._made[FAULTS.name].inc(1, tags={**study, "reason": reason})
        for seconds in self._turnarounds:
            self._made[TURNAROUND.name].observe(max(seconds, 1e-9), tags=study)
        self._faults, self._turnarounds = [], []
