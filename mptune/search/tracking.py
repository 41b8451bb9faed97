"""Shows the course of a search elsewhere: in trackers, and in notes of its study.

Each tracker has a thread, which cannot slow the search.
"""

from __future__ import annotations

import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mptune.analysis import explanation
from mptune.errors import one_line, plural
from mptune.paths import RunDirectory, write_text
from mptune.search.stage import Stage
from mptune.spec.schema import Search, SearchSpec, build
from mptune.study.optuna_private import save_note
from mptune.study.records import one_trial
from mptune.trackers.base import SEARCH, Group, Scalar, TrackedRun, Tracker
from mptune.trial import (
    Event,
    Failed,
    Finished,
    Progress,
    Rung,
    Scoring,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

if TYPE_CHECKING:
    import optuna

MOST_WAITING = 10_000
"""Calls that wait for a tracker; with more, the next ones are left out."""

END_TIMEOUT_S = 30.0
"""How long the end of a driver waits for a tracker."""


class TrackerFeed:
    """The calls that wait for one tracker, and the thread that makes them."""

    def __init__(self, tracker: Tracker, group: Group, say: Callable[[str], None]) -> None:
        self._tracker, self._group, self._say = tracker, group, say
        self._waiting: queue.Queue[tuple[int, str, tuple[Any, ...]]] = queue.Queue(MOST_WAITING)
        self._has_started = self._has_said = False
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, name=tracker.extra, daemon=True)
        self._thread.start()

    def send(self, method: str, *values: Any) -> None:
        """Have a method of the tracker called; returns at once."""
        try:
            self._waiting.put_nowait((time.time_ns(), method, values))
        except queue.Full:
            self._left_out += 1

    def close(self, timeout_s: float) -> None:
        """Wait until all is sent, at most so long."""
        self.send("end")
        self._thread.join(timeout_s)
        missing = self._left_out + self._waiting.qsize()
        if missing or self._thread.is_alive():
            self._note(f"is slow: {plural(missing, 'message')} not sent")

    def _work(self) -> None:
        method = ""
        while method != "end":
            now_ns, method, values = self._waiting.get()
            try:
                self._tracker.at(now_ns)
                if not self._has_started:
                    self._tracker.start(self._group)
                    self._has_started = True
                getattr(self._tracker, method)(*values)
            # Whatever a tracker raises, some of them SystemExit, is not the search's.
            except BaseException as error:
                self._note(one_line(error) if isinstance(error, Exception) else repr(error))

    def _note(self, what: str) -> None:
        if not self._has_said:
            self._has_said = True
            self._say(f"note: tracker {self._tracker.extra}: {what}; the search goes on")


def feeds(
    spec: SearchSpec, directory: RunDirectory, say: Callable[[str], None]
) -> list[TrackerFeed]:
    """A feed for each tracker of the spec; the search keeps its id in the run directory."""
    if not spec.track:
        return []
    if not directory.tracking.exists():
        write_text(directory.tracking, secrets.token_hex(4))
    name = f"{spec.name}-{directory.tracking.read_text(encoding='utf-8')}"
    group = Group(spec.name, name, directory.root.absolute())
    return [TrackerFeed(build("track", values), group, say) for values in spec.track]


def publish(
    spec: SearchSpec,
    directory: RunDirectory,
    summary: Mapping[str, Scalar],
    say: Callable[[str], None],
) -> None:
    """Give the trackers what a finished search recommends, and its report."""
    found, run = feeds(spec, directory, say), TrackedRun(SEARCH, spec.name)
    for feed in found:
        feed.send("verdict", run, "complete", summary)
        for path in (directory.report_html, directory.report_json):
            feed.send("artifact", run, path)
    for feed in found:
        feed.close(END_TIMEOUT_S)


@dataclass
class TrackedView:
    """The observer of a stage, which also feeds trackers and writes the notes of trials."""

    view: Any
    stage: Stage
    feeds: Sequence[TrackerFeed]
    study: optuna.Study
    settings: Search
    _runs: dict[int, TrackedRun] = field(default_factory=dict)
    _lengths: dict[int, int] = field(default_factory=dict)
    _steps: dict[int, int] = field(default_factory=dict)
    _summaries: dict[int, dict[str, Scalar]] = field(default_factory=dict)

    def propose(self, trial: Any) -> TrialSpec:
        """The stage's proposal, kept as the config of its run."""
        spec = self.stage.propose(trial)
        if not self.feeds:
            return spec
        key = f"{self.stage.name}-{spec.number:04d}"
        self._runs[spec.number] = TrackedRun(key, spec.label, config(spec))
        self._lengths[spec.number] = spec.prepared.length
        return spec

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted."""
        self.view.trial(number, label, size)
        self._send("trial", number)
        self._note(number)

    def on_event(self, event: Event) -> None:
        """Send what has numbers."""
        self.view.on_event(event)
        if event.number not in self._runs:
            return
        number = event.number
        match event:
            case Started():
                self._steps[number] = event.total_steps
                self._send("part", number, "train")
            case Scoring():
                self._send("part", number, "score")
            case Progress():
                self._send("event", number, "step", event.step, numbers(event))
            case Rung():
                step = round(event.progress * self._steps.get(number, 0))
                values = {"rung/lml": event.nats_per_token, "rung/lml_se": event.se}
                self._send("event", number, "step", step, values)
            case Finished():
                self._summaries[number] = outcome(event.result)
                for masked, values in curve(event.result, self._lengths[number]):
                    self._send("event", number, "masked", masked, values)
            case Failed():
                self._summaries[number] = {"reason": event.reason, "detail": event.detail}
        # It may be told later: in the order in which trials were asked for.
        if isinstance(event, Finished | Failed | Stopped):
            self._send("part", number, "end")

    def hold_trial(self, number: int, why: str) -> None:
        """The budgets have no room for a trial now."""
        self.view.hold_trial(number, why)
        self._note(number)

    def finish_trial(self, number: int, state: str) -> None:
        """Send the outcome of a trial."""
        self.view.finish_trial(number, state)
        self._send("verdict", number, state, self._summaries.pop(number, {}))
        self._note(number)

    def _note(self, number: int) -> None:
        """Write why the trial was run and what became of it, for who looks at the study."""
        stored, trial = one_trial(self.study, self.stage.name, number)
        save_note(self.study, stored, explanation.note(trial, self.settings))

    def _send(self, method: str, number: int, *values: Any) -> None:
        for feed in self.feeds if number in self._runs else ():
            feed.send(method, self._runs[number], *values)


def config(spec: TrialSpec) -> dict[str, Scalar]:
    """What determines a trial, as plain names and values."""
    sections = {"model": spec.model, "policy": spec.policy, "training": spec.training.model_dump()}
    named: dict[str, Scalar] = {
        "policy_label": spec.policy_label,
        "size": spec.size_label,
        "seed": spec.seed,
    }
    return {**named, **dict(_flat(sections))}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, Scalar) else str(value)


def numbers(event: Progress) -> dict[str, float]:
    """The numbers of the event that are known."""
    found = {
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "mask_rate": event.mask_rate,
        "gradient_norm": event.gradient_norm,
        "speed/tokens_per_s": event.tokens_per_s,
        "speed/flops_per_s": event.flops_per_s,
        "speed/utilisation": event.utilisation,
        "speed/checkpoint_s": event.checkpoint_s,
        **{f"loss_by_rate/{100 * r:.0f} %": loss for r, loss in event.loss_by_rate},
    }
    return {name: value for name, value in found.items() if value is not None}


def outcome(result: TrialResult) -> dict[str, Scalar]:
    """Scores with their standard errors, and the cost, of a finished trial."""
    lml, cost = result.lml, result.cost
    found: dict[str, float | None] = {
        "lml": lml.nats_per_token,
        "lml_se": lml.se_per_token,
        "lml_per_sequence": lml.nats_per_sequence,
        "lml_per_sequence_se": lml.se_population,
        "bits_per_byte": lml.bits_per_byte,
        "mean_mask_rate": result.mean_mask_rate,
        **{f"loss at {100 * r.rate:.0f} %": r.loss for r in result.rates},
        **{f"accuracy at {100 * r.rate:.0f} %": r.accuracy for r in result.rates},
        **{f"lml on {name}": score.nats_per_token for name, score in result.lml_shift.items()},
        **{f"cost/{k}": v for k, v in cost.model_dump().items() if isinstance(v, int | float)},
    }
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def curve(result: TrialResult, length: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The MPT curve S(M): masked positions, and nats per masked position with its error."""
    for point in result.lml.curve:
        masked = round(point.mask_rate * length)
        yield masked, {"curve/S(M)": point.nats_per_token, "curve/se": point.se}
