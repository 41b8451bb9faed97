"""Ask, dispatch, report, prune, tell; resume.

A driver that is killed at any moment and started again with the same command goes on. A trial
that was running is put back in the queue under its own number and parameters; a trial that had
finished but was not yet told is told from its result file.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from mptune.dispatch.base import Dispatcher
from mptune.errors import InterruptedSearch, LeaseLost, NoResultError
from mptune.forecast import Predictor
from mptune.lease import Lease, Unneeded
from mptune.ledger import Ledger
from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.status import Status
from mptune.study import attributes
from mptune.study.attributes import describe, report_rung, set_attributes
from mptune.study.budget import Budget, Forecaster
from mptune.study.flight import Heard, InFlight
from mptune.study.history import History
from mptune.study.lock import interrupts
from mptune.study.queued import requeue_running, requeue_trial
from mptune.study.spend import load_spend, save_spend
from mptune.study.standing import Moment, Watched
from mptune.study.storage import CUT_OFF, attributes_of
from mptune.trial import (
    RETRIED,
    Event,
    Failed,
    Finished,
    GangChanged,
    LearningPoint,
    Rung,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

MAX_FAILURES_IN_A_ROW = 5
"""With nothing finished yet, this many failures mean that the spec or the machine is broken."""

TAUGHT = 50
"""Finished trials of earlier drivers that predictions are made from."""

ASK_ATTEMPTS = 3

SPEND_EVERY_S = 60.0
"""What a driver that dies has used and not written down is lost to the budgets."""


class Observer(Protocol):
    """Whoever watches a study: a live table, a log."""

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted."""

    def on_event(self, event: Event) -> None:
        """Something happened to a trial or a gang."""

    def finish_trial(self, number: int, state: str) -> None:
        """A trial was told to the study, in this state."""


@dataclass
class StudyDriver:
    """Drives one Optuna study to its number of trials.

    `propose(trial)` turns an asked trial into a TrialSpec. With `ordered`, trials are told in the
    order in which they were asked, and each is asked after the same ones were told, whatever
    order they finish in; the proposals of a resumed search are then those of an undisturbed one.
    """

    study: optuna.Study
    trials: int
    propose: Callable[[optuna.Trial], TrialSpec]
    dispatcher: Dispatcher
    observer: Observer
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    concurrency: int | None = None
    ordered: bool = True
    budget_seconds: float | None = None
    budget_worker_seconds: float | None = None
    budget_gpu_hours: float | None = None
    log: Path | None = None
    preflight: Callable[[TrialSpec], str | None] = lambda spec: None
    """Why a trial cannot fit in the memory of any gang it could get; None lets it be submitted."""
    lease: Lease = field(default_factory=Unneeded)
    interrupted: threading.Event = field(default_factory=threading.Event)
    predictor: Predictor = field(default_factory=Predictor)
    watchers: Sequence[Callable[[Status], None]] = ()
    _flight: dict[int, InFlight] = field(default_factory=dict)
    _order: deque[int] = field(default_factory=deque)
    _spent_before: float = 0.0
    _started: float = 0.0
    _spend_saved: float = 0.0
    _ledger: Ledger = field(default_factory=Ledger)
    _held_back: bool = False
    """A trial waits for what others leave of the budgets; none is asked for until one has ended."""
    _history: History = field(default_factory=History)
    _watched: Watched = field(init=False)

    def run(self) -> None:
        """Run until every trial has ended.

        Raises:
            InterruptedSearch: Ctrl-C or SIGTERM; what ran is queued again under its number.
            NoResultError: the first trials all failed.
            LeaseLost: another driver has taken the study over.
        """
        self._started = time.monotonic()
        self._spend_saved = self._started
        self._spent_before, self._ledger = load_spend(self.study)
        self._watched = self._made_watched()
        teach(self.predictor, self.study)
        requeue_running(self.study)
        self._history = History.of(self.study)
        with interrupts(self.interrupted):
            self._show()
            self._fill()
            self._settle()
            while self._flight:
                self._stop_if_interrupted()
                events = self.dispatcher.events(timeout_s=0.5)
                self._check_lease()
                for event in events:
                    self._handle(event)
                self._settle()
                if time.monotonic() - self._spend_saved > SPEND_EVERY_S:
                    self._save_spend()
                if self._watched.is_time():
                    self._show()
        self._save_spend()
        self._show()
        if self.interrupted.is_set():
            raise InterruptedSearch("interrupted")

    def _check_lease(self) -> None:
        """Nothing is written to the storage without it: the trials are another driver's now."""
        if not self.lease.is_held():
            raise LeaseLost(
                f"another driver has taken study {self.study.study_name!r} over while this one was "
                "out of reach; it goes on there"
            )

    def _fill(self) -> None:
        while len(self._flight) < self._limit() and self._may_ask():
            self._ask()

    def _limit(self) -> int:
        if self.concurrency is not None:
            return self.concurrency
        return self.dispatcher.capacity([f.spec.resources for f in self._flight.values()])

    def _may_ask(self) -> bool:
        if self.interrupted.is_set() or self._over_budget():
            return False
        if self._held_back or self._budget().is_spent(self._forecaster().used(time.monotonic())):
            return False
        self._refuse_hopeless()
        return self._history.ended + len(self._flight) < self.trials

    def _over_budget(self) -> bool:
        return self.budget_seconds is not None and self._spent() >= self.budget_seconds

    def _spent(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _save_spend(self) -> None:
        self._spend_saved = time.monotonic()
        save_spend(self.study, self._spent(), self._ledger)

    def _refuse_hopeless(self) -> None:
        failed, ended = self._history.failed, self._history.ended
        # What was refused has cost nothing, and others may fit.
        ran = failed - self._history.refused
        if failed == ended and ran >= MAX_FAILURES_IN_A_ROW and not self._flight:
            raise NoResultError(
                f"the first {failed} trials all failed; the last one: {self._history.last_failure}"
            )

    def _ask(self) -> None:
        trial = self._asked()
        spec = self.propose(trial)
        describe(trial, spec)
        self._flight[spec.number] = InFlight(trial, spec, trial.user_attrs.get("retries", 0))
        self._order.append(spec.number)
        self.observer.trial(spec.number, *spec.label.split(" · ", 1))
        self._take_over_twin(trial, spec)
        result = _finished_before(spec)
        lacking = self._lacking(spec)
        if result is not None:
            self._replay(spec, result)
        elif lacking is not None:
            self._hold_back(spec.number, lacking)
        else:
            self._submit(spec)

    def _budget(self) -> Budget:
        return Budget(self.budget_worker_seconds, self.budget_gpu_hours)

    def _forecaster(self) -> Forecaster:
        return Forecaster(self.predictor, self._ledger)

    def _lacking(self, spec: TrialSpec) -> str | None:
        """What the trial is forecast to need that the budgets do not have beside the others."""
        others = [f.spec for f in self._flight.values() if f.ending is None and f.spec != spec]
        forecaster, now = self._forecaster(), time.monotonic()
        return self._budget().lacks(forecaster.promised(others, now), forecaster.whole(spec))

    def _hold_back(self, number: int, lacking: str) -> None:
        """Back in the queue, until another took less than was forecast or a budget is raised."""
        flight = self._flight.pop(number)
        self._order.remove(number)
        set_attributes(flight.trial, reason="budget", detail=lacking)
        requeue_trial(self.study, flight.trial._trial_id)
        self._history.wait(number)
        self._held_back = True
        self.observer.finish_trial(number, f"held back: {lacking}")

    def _submit(self, spec: TrialSpec) -> None:
        """Ask for a gang, unless none could hold the trial: that is as if it ran out of memory."""
        refusal = self.preflight(spec)
        if refusal is None:
            self.dispatcher.submit(spec)
        else:
            self._history.refused += 1
            set_attributes(self._flight[spec.number].trial, refused=True)
            self._handle(Failed(number=spec.number, reason="out_of_memory", detail=refusal))

    def _asked(self) -> optuna.Trial:
        """The next trial. One whose answer a restarting server cut off is queued and asked again.

        Raises:
            StorageInternalError, OperationalError: the storage fails every time.
        """
        for _ in range(ASK_ATTEMPTS - 1):
            expected = self._history.next_number
            with suppress(*CUT_OFF):
                trial = self._asked_once()
                if trial.number == expected:
                    return trial
            requeue_running(self.study, besides=self._flight)
            self._history = History.of(self.study)
        return self._asked_once()

    def _asked_once(self) -> optuna.Trial:
        self.study.sampler = self.sampler(self._history.next_number)
        trial = self.study.ask()
        self._history.ask(trial.number)
        return trial

    def _take_over_twin(self, trial: optuna.Trial, spec: TrialSpec) -> None:
        """A trial is a pure function of its spec: one that has been run is not run again."""
        twin = self._history.twins.get(spec.fingerprint())
        if twin is None:
            return
        attrs = attributes_of(self.study, self.study.get_trials(deepcopy=False)[twin])
        ran = TrialSpec.model_validate_json(attrs["trial_spec"])
        own = TrialDirectory.of(spec.directory)
        write_text(own.spec, spec.model_dump_json(indent=2))
        _copy_outcome(TrialDirectory.of(ran.directory), own)
        set_attributes(trial, same_as=twin)

    def _replay(self, spec: TrialSpec, result: TrialResult) -> None:
        """A result that was written but not told: tell it, do not train it again."""
        trial = self._flight[spec.number].trial
        for progress, value in result.rungs:
            report_rung(trial, value, progress)
        self._handle(Finished(number=spec.number, result=result))

    def _handle(self, event: Event) -> None:
        self._log(event)
        self.observer.on_event(event)
        if isinstance(event, GangChanged):
            return
        flight = self._flight.get(event.number)
        if flight is None:
            return
        flight.heard.take(event)
        self.predictor.observe(flight.spec, event, time.monotonic())
        if isinstance(event, Started):
            self._watched.first_start = self._watched.first_start or time.monotonic()
            self._ledger.begin(event.number, time.monotonic(), flight.spec.resources)
        if isinstance(event, Rung):
            self._decide(flight, event)
        elif isinstance(event, Finished | Stopped | Failed):
            self._ledger.end(event.number, time.monotonic())
            self._end(flight, event)

    def _end(self, flight: InFlight, ending: Finished | Stopped | Failed) -> None:
        """A trial that its machine failed is run again, from its checkpoint if it has one."""
        preempted = isinstance(ending, Stopped) and ending.reason == "preempted"
        broken = isinstance(ending, Failed) and ending.reason in RETRIED
        again = preempted or (broken and flight.retries < flight.spec.resources.retries)
        if not again:
            flight.ending = ending
        elif self.interrupted.is_set():
            flight.ending = Stopped(number=flight.spec.number, reason="interrupted", step=0)
        else:
            flight.retries += broken
            flight.heard = Heard()
            set_attributes(flight.trial, retries=flight.retries)
            self.dispatcher.submit(flight.spec)

    def _decide(self, flight: InFlight, rung: Rung) -> None:
        report_rung(flight.trial, rung.nats_per_token, rung.progress)
        before = [p for p in flight.trial.user_attrs.get("learning", ()) if _earlier(p, rung)]
        point = LearningPoint(**rung.model_dump(include=set(LearningPoint.model_fields)))
        set_attributes(flight.trial, learning=[*before, point.model_dump()])
        named = "arm" in flight.trial.user_attrs
        prune = not named and not self.interrupted.is_set() and flight.trial.should_prune()
        self.dispatcher.decide(rung.number, not prune)

    def _settle(self) -> None:
        """Tell what has ended; in ordered mode the oldest first, asking anew after each."""
        while self._order:
            ready = [n for n in self._order if self._flight[n].ending is not None]
            if not ready or (self.ordered and ready[0] != self._order[0]):
                return
            self._order.remove(ready[0])
            self._tell(self._flight.pop(ready[0]))
            self._fill()

    def _tell(self, flight: InFlight) -> None:
        self._held_back = False
        number, trial, ending = flight.spec.number, flight.trial, flight.ending
        if isinstance(ending, Finished):
            attributes.record_result(trial, ending.result)
            self.study.tell(number, ending.result.lml.nats_per_token)
            self._history.complete(number, trial.user_attrs, ending.result.lml.nats_per_token)
            self.observer.finish_trial(number, "complete")
        elif isinstance(ending, Stopped) and ending.reason == "interrupted":
            requeue_trial(self.study, trial._trial_id)
            self._history.wait(number)
            self.observer.finish_trial(number, "interrupted")
        elif isinstance(ending, Stopped):
            set_attributes(trial, reason="pruned", detail=f"pruned at step {ending.step}")
            self.study.tell(number, state=TrialState.PRUNED)
            self._history.prune()
            self.observer.finish_trial(number, "pruned")
        elif isinstance(ending, Failed):
            attributes.tell_failure(self.study, trial, ending)
            self._history.fail(ending.reason, ending.detail)
            self.observer.finish_trial(number, f"failed: {ending.reason}")
        self._save_spend()

    def _stop_if_interrupted(self) -> None:
        """Ask each trial once: how long it may take counts from then."""
        if self.interrupted.is_set():
            for number, flight in self._flight.items():
                if flight.ending is None and not flight.asked_to_stop:
                    flight.asked_to_stop = True
                    self.dispatcher.stop(number, "interrupted")

    def _made_watched(self) -> Watched:
        budgets = {
            "budget_seconds": self.budget_seconds,
            "budget_worker_seconds": self.budget_worker_seconds,
            "budget_gpu_hours": self.budget_gpu_hours,
        }
        return Watched(
            study=self.study.study_name,
            total=self.trials,
            dispatcher=self.dispatcher,
            predictor=self.predictor,
            ledger=self._ledger,
            budgets=budgets,
            watchers=self.watchers,
        )

    def _show(self) -> None:
        """Tell whoever watches where the study stands."""
        flights, stopping = list(self._flight.values()), self.interrupted.is_set()
        self._watched.show(Moment(self._history, flights, self._spent(), stopping))

    def _log(self, event: Event) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as handle:
                handle.write(f'{{"time": {time.time():.3f}, "event": {event.model_dump_json()}}}\n')


def teach(predictor: Predictor, study: optuna.Study) -> None:
    """Tell how long the last trials of a study took that has run before."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ran = [t for t in finished if "same_as" not in t.user_attrs]
    for trial in ran[-TAUGHT:]:
        attrs = attributes_of(study, trial)
        if "result" in attrs:
            spec = TrialSpec.model_validate_json(attrs["trial_spec"])
            predictor.learn(spec, TrialResult.model_validate_json(attrs["result"]))


def _earlier(point: Mapping[str, Any], rung: Rung) -> bool:
    return float(point["progress"]) < rung.progress


def _finished_before(spec: TrialSpec) -> TrialResult | None:
    """The trial's own result, if a worker wrote it before the last driver died."""
    path = TrialDirectory.of(spec.directory).result
    try:
        result = TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.fingerprint == spec.fingerprint() else None


def _copy_outcome(of: TrialDirectory, to: TrialDirectory) -> None:
    """Scores first: a result that stands is complete."""
    for source, target in ((of.scores, to.scores), (of.result, to.result)):
        if source.exists():
            with write_aside(target) as aside:
                shutil.copyfile(source, aside)
