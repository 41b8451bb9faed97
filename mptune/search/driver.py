"""Ask, dispatch, report, prune, tell; resume.

A driver that is killed at any moment and started again with the same command goes on. A trial
that was running is put back in the queue under its own number and parameters; a trial that had
finished but was not yet told is told from its result file.
"""

from __future__ import annotations

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
from mptune.search.budget import Allowance, Budget
from mptune.search.earlier import finished_before, take_over, teach
from mptune.search.flight import Heard, InFlight
from mptune.search.forecast import Predictor
from mptune.search.history import History
from mptune.search.standing import Moment, Watched
from mptune.status import Status
from mptune.study import attributes
from mptune.study.attributes import describe, report_rung, set_attributes
from mptune.study.lease import Lease, Unneeded
from mptune.study.lock import interrupts
from mptune.study.queued import explain_waiting, requeue_running, requeue_trial
from mptune.study.spend import load_spend, save_spend
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

MAX_HELD = 3
"""Trials that the budgets have no room for: with so many, none is asked for until one has ended."""

MAX_FAILURES_IN_A_ROW = 5
"""With nothing finished yet, this many failures mean that the spec or the machine is broken."""

ASK_ATTEMPTS = 3

SPEND_EVERY_S = 10.0
"""What a driver that dies has used and not written down is lost to the budgets."""


class Observer(Protocol):
    """Whoever watches a study: a live table, a log."""

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted."""

    def on_event(self, event: Event) -> None:
        """Something happened to a trial or a gang."""

    def hold_trial(self, number: int, why: str) -> None:
        """The budgets have no room for a trial now; it may be submitted again."""

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
    budget: Budget = field(default_factory=Budget)
    log: Path | None = None
    preflight: Callable[[TrialSpec], str | None] = lambda spec: None
    """Why a trial cannot fit in the memory of any gang it could get; None lets it be submitted."""
    lease: Lease = field(default_factory=Unneeded)
    interrupted: threading.Event = field(default_factory=threading.Event)
    predictor: Predictor = field(default_factory=Predictor)
    watchers: Sequence[Callable[[Status], None]] = ()
    stopped_by: str | None = field(init=False, default=None)
    """The budget that has ended it before all trials have, in words."""
    _flight: dict[int, InFlight] = field(default_factory=dict)
    _order: deque[int] = field(default_factory=deque)
    _spent_before: float = 0.0
    _started: float = 0.0
    _spend_saved: float = 0.0
    _allowance: Allowance = field(default_factory=Allowance)
    _held: dict[int, InFlight] = field(default_factory=dict)
    """Trials that wait for what others leave of the budgets."""
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
        self._spent_before, ledger = load_spend(self.study)
        self._allowance = Allowance(self.budget, self.predictor, ledger)
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
                self._keep_to_budget()
                if time.monotonic() - self._spend_saved > SPEND_EVERY_S:
                    self._save_spend()
                if self._watched.is_time():
                    self._show()
        self._let_wait()
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
        self._take_back()
        while len(self._flight) < self._limit() and self._may_ask():
            self._ask()

    def _take_back(self) -> None:
        """Submit held trials that there is room for now that another has ended."""
        for number, flight in sorted(self._held.items()):
            if not self._may_start() or len(self._flight) >= self._limit():
                return
            if self._lacking(flight.spec) is None:
                del self._held[number]
                self._launch(InFlight(flight.trial, flight.spec, flight.retries))

    def _limit(self) -> int:
        if self.concurrency is not None:
            return self.concurrency
        return self.dispatcher.capacity([f.spec.resources for f in self._flight.values()])

    def _may_start(self) -> bool:
        return not self.interrupted.is_set() and self._limited() is None

    def _may_ask(self) -> bool:
        if not self._may_start() or len(self._held) >= MAX_HELD:
            return False
        self._refuse_hopeless()
        return self._history.ended + len(self._flight) + len(self._held) < self.trials

    def _limited(self) -> str | None:
        """Which budget is used up, in words; None if none is."""
        return self.budget.reached(self._allowance.used(time.monotonic()), self._spent())

    def _spent(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _save_spend(self) -> None:
        self._spend_saved = time.monotonic()
        save_spend(self.study, self._spent(), self._allowance.ledger)

    def _refuse_hopeless(self) -> None:
        failed, ended = self._history.failed, self._history.ended
        # What was refused has cost nothing, and others may fit.
        ran = failed - self._history.refused
        if failed == ended and ran >= MAX_FAILURES_IN_A_ROW and not self._flight:
            self._let_wait()
            raise NoResultError(
                f"the first {failed} trials all failed; the last one: {self._history.last_failure}"
            )

    def _ask(self) -> None:
        trial = self._asked()
        self._launch(InFlight(trial, self.propose(trial), trial.user_attrs.get("retries", 0)))

    def _launch(self, flight: InFlight) -> None:
        """Submit a trial, unless its result is known already or the budgets have no room."""
        trial, spec = flight.trial, flight.spec
        describe(trial, spec)
        self._flight[spec.number] = flight
        self._order.append(spec.number)
        self.observer.trial(spec.number, spec.policy_label, spec.size_label)
        self._take_over_twin(trial, spec)
        result = finished_before(spec)
        flight.held = None if result else self._lacking(spec)
        if result is not None:
            self._replay(spec, result)
        elif flight.held is None:
            self._submit(spec)
        else:
            self._order.remove(spec.number)
            self._hold(self._flight.pop(spec.number), flight.held)

    def _lacking(self, spec: TrialSpec) -> str | None:
        """What the trial is forecast to need that the budgets do not have beside the others."""
        others = [f.spec for f in self._flying() if f.spec.number != spec.number]
        return self._allowance.lacking(spec, others, time.monotonic())

    def _flying(self) -> list[InFlight]:
        return [flight for flight in self._flight.values() if flight.ending is None]

    def _hold(self, flight: InFlight, why: str) -> None:
        """Until another took less than was forecast, or a later driver has a larger budget."""
        set_attributes(flight.trial, reason="budget", detail=why)
        self._held[flight.spec.number] = flight
        self.observer.hold_trial(flight.spec.number, why)

    def _keep_to_budget(self) -> None:
        """Stop running trials, at a checkpoint, that turn out not to fit."""
        flying = [flight for flight in self._flying() if not flight.asked_to_stop]
        specs = [flight.spec for flight in flying]
        for spec, why in self._allowance.excess(specs, time.monotonic()):
            self._flight[spec.number].held = why
            self._ask_to_stop(self._flight[spec.number])

    def _let_wait(self) -> None:
        """Back into the queue what no driver runs, and say there why it waits."""
        for flight in self._held.values():
            self._queue_again(flight)
        if self._history.ended < self.trials and not self.interrupted.is_set():
            self.stopped_by = self._limited()
            if self._held and not self.stopped_by:
                self.stopped_by = self.budget.nearest(self._allowance.used(time.monotonic()))
        if self.stopped_by:
            explain_waiting(self.study, self.stopped_by)

    def _queue_again(self, flight: InFlight) -> None:
        requeue_trial(self.study, flight.trial._trial_id)
        self._history.wait(flight.spec.number)

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
            requeue_running(self.study, besides={*self._flight, *self._held})
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
        if take_over(TrialSpec.model_validate_json(attrs["trial_spec"]), spec):
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
            self._allowance.ledger.begin(event.number, time.monotonic(), flight.spec.resources)
        if isinstance(event, Rung):
            self._decide(flight, event)
        elif isinstance(event, Finished | Stopped | Failed):
            self._allowance.ledger.end(event.number, time.monotonic())
            self._end(flight, event)

    def _end(self, flight: InFlight, ending: Finished | Stopped | Failed) -> None:
        """A trial that its machine failed is run again, from its checkpoint if it has one."""
        preempted = isinstance(ending, Stopped) and ending.reason == "preempted"
        broken = isinstance(ending, Failed) and ending.reason in RETRIED
        again = preempted or (broken and flight.retries < flight.spec.resources.retries)
        if not again:
            flight.ending = ending
        else:
            flight.retries += broken
            flight.heard = Heard()
            set_attributes(flight.trial, retries=flight.retries)
            flight.held = flight.held or self._lacking(flight.spec)
            if self.interrupted.is_set() or flight.held:
                flight.ending = Stopped(number=flight.spec.number, reason="interrupted", step=0)
            else:
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
        number, trial, ending = flight.spec.number, flight.trial, flight.ending
        if isinstance(ending, Finished):
            attributes.record_result(trial, ending.result)
            self.study.tell(number, ending.result.lml.nats_per_token)
            self._history.complete(number, trial.user_attrs, ending.result.lml.nats_per_token)
            self.observer.finish_trial(number, "complete")
        elif isinstance(ending, Stopped) and ending.reason == "interrupted":
            if flight.held and not self.interrupted.is_set():
                self._hold(flight, flight.held)
            else:
                self._queue_again(flight)
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
            for flight in self._flying():
                if not flight.asked_to_stop:
                    self._ask_to_stop(flight)

    def _ask_to_stop(self, flight: InFlight) -> None:
        flight.asked_to_stop = True
        self.dispatcher.stop(flight.spec.number, "interrupted")

    def _made_watched(self) -> Watched:
        budgets = {
            "budget_seconds": self.budget.wall_s,
            "budget_worker_seconds": self.budget.worker_s,
            "budget_gpu_hours": self.budget.gpu_hours,
        }
        return Watched(
            study=self.study.study_name,
            total=self.trials,
            dispatcher=self.dispatcher,
            predictor=self.predictor,
            ledger=self._allowance.ledger,
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


def _earlier(point: Mapping[str, Any], rung: Rung) -> bool:
    return float(point["progress"]) < rung.progress
