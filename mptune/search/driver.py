"""Drives one study: asks Optuna for trials, dispatches them, prunes, tells the outcome; resumes.

A driver that is killed at any moment and started again with the same command goes on. A trial
that was running goes back into the queue under its own number and parameters. For a trial whose
result file exists, the driver tells Optuna that result and does not train it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mptune.artifacts import store_at
from mptune.dispatch.base import Dispatcher
from mptune.errors import DiskFull, InterruptedSearch, LeaseLost, NoResultError
from mptune.paths import TrialDirectory, drop_half_line, release_freed_memory
from mptune.search.budget import Allowance, Budget
from mptune.search.forecast import Predictor
from mptune.search.in_flight import InFlight, InFlightState, copy_result, finished_before
from mptune.search.ledger import load_spend, save_spend
from mptune.search.monitor import Monitor
from mptune.status import Outlook, Status
from mptune.study.history import History
from mptune.study.lease import PostgresLease, interrupts
from mptune.study.optuna_private import requeue, set_attributes, user_attributes
from mptune.study.pruners import PausingPruner
from mptune.study.queue import explain_waiting, paused_trials, requeue_running
from mptune.study.records import (
    ASKED,
    JUDGED,
    JUDGED_BY,
    ONE,
    PAUSED,
    describe,
    last_results,
    record_result,
    report_rung,
    tell_failure,
    tell_pruned,
)
from mptune.study.storage import CONNECTION_LOST
from mptune.trial import (
    RETRIED,
    Event,
    Failed,
    Finished,
    GangChanged,
    LearningPoint,
    Rung,
    StageName,
    Started,
    Stopped,
    StopReason,
    TrialSpec,
)

if TYPE_CHECKING:
    import optuna

MAX_HELD = 3
"""With this many trials held for the budgets, no other is asked for until one has ended."""

MAX_FAILURES_IN_A_ROW = 5
"""With nothing finished yet, this many failures mean that the spec or the machine is broken."""

ASK_ATTEMPTS = 3

RESULTS_READ = 50
"""Finished trials of earlier drivers that predictions are made from."""

SPEND_EVERY_S = 10.0
"""Seconds between two writes of what was used: a driver that dies loses at most these."""

EVENT_TIMEOUT_S = 0.5


class Observer(Protocol):
    """A live table or a log that watches a study. A method that a subclass lacks does nothing."""

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted."""
        return

    def on_event(self, event: Event) -> None:
        """A trial or a gang reported something."""
        return

    def hold_trial(self, number: int, why: str) -> None:
        """The budgets have no room for a trial now; it may be submitted again."""
        return

    def finish_trial(self, number: int, state: str) -> None:
        """The outcome of a trial was stored in the study, as this state."""
        return


def _paused_at(flight: InFlight) -> float:
    """Progress at which a trial was paused."""
    return float(flight.trial.user_attrs[JUDGED][-1]["progress"])


def _pause_words(decision: Mapping[str, Any]) -> str:
    why = decision.get("why", "unlikely to end near the best")
    return f"paused at {100 * decision['progress']:g}%: {why}"


def remove_checkpoint(spec: TrialSpec) -> None:
    """Remove the checkpoint of a trial that has ended."""
    files = TrialDirectory.of(spec.directory)
    store_at(spec.artifacts or files.root).remove(files.checkpoint.name)


def prune_paused(study: optuna.Study) -> list[int]:
    """At the end of a study no paused trial goes on: remove its checkpoint; returns the numbers."""
    paused = paused_trials(study)
    for trial in paused:
        spec = TrialSpec.model_validate_json(user_attributes(study, trial)["trial_spec"])
        # The checkpoint first: a driver that dies in between finds the trial paused.
        remove_checkpoint(spec)
        tell_pruned(study, trial, trial.user_attrs["detail"])
    return [trial.number for trial in paused]


@dataclass
class StudyDriver:
    """Drives one Optuna study to its number of trials.

    A trial that a pruner has paused uses up the part of a training that it was trained for. Another
    begins, or a paused one goes on, only if there is enough left for all in flight to finish.

    Attributes:
        propose: turns an asked trial into its TrialSpec.
        sampler: the sampler of the trial with this number.
        concurrency: trials in flight at once; None: as many as the dispatcher has room for.
        ordered: tell trials in the order in which they were asked, whatever order they finish in,
            so that the proposals of a resumed search are those of an undisturbed one.
        log: file that every event is appended to.
        preflight: why a trial fits in the memory of no gang that it could get; None submits it.
        watchers: get the status about once a second.
        judge: how sure the study is and whether it ends, asked at the start and after each trial;
            None: it does not end by itself. Running trials finish, those of a dead driver, too.
        clock: monotonic seconds.
        stopped_by: the budget that ended the study before its last trial, or None.
    """

    study: optuna.Study
    trials: int
    propose: Callable[[optuna.Trial], TrialSpec]
    dispatcher: Dispatcher
    observer: Observer
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    stage: StageName = "search"
    concurrency: int | None = None
    ordered: bool = True
    budget: Budget = field(default_factory=Budget)
    log: Path | None = None
    preflight: Callable[[TrialSpec], str | None] = lambda spec: None
    lease: PostgresLease | None = None
    interrupted: threading.Event = field(default_factory=threading.Event)
    predictor: Predictor = field(default_factory=Predictor)
    watchers: Sequence[Callable[[Status], None]] = ()
    judge: Callable[[], Outlook | None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    stopped_by: str | None = field(init=False, default=None)
    _in_flight: dict[int, InFlight] = field(default_factory=dict)
    _held: dict[int, InFlight] = field(default_factory=dict)
    _paused: dict[int, InFlight] = field(default_factory=dict)
    _spent_before: float = 0.0
    _started: float = 0.0
    _spend_saved: float = 0.0
    _allowance: Allowance = field(default_factory=Allowance)
    _history: History = field(default_factory=History)
    _outlook: Outlook | None = None
    _monitor: Monitor = field(init=False)

    def run(self) -> None:
        """Run until every trial has ended.

        Raises:
            InterruptedSearch: Ctrl-C or SIGTERM; running trials are queued again.
            NoResultError: the first trials all failed.
            DiskFull: a trial had no room for its files.
            LeaseLost: another driver has taken the study over.
        """
        self._begin()
        with interrupts(self.interrupted):
            self._show()
            self._fill()
            self._tell_ended()
            while self._in_flight:
                if self.interrupted.is_set():
                    for flight in self._running():
                        self._stop(flight)
                events = self.dispatcher.events(timeout_s=EVENT_TIMEOUT_S)
                if self.lease is not None and not self.lease.is_held():
                    raise LeaseLost(
                        f"another driver has taken study {self.study.study_name!r} over while this "
                        "one could not reach the storage; the search goes on there"
                    )
                for event in events:
                    self._handle(event)
                self._tell_ended()
                self._stop_excess()
                if self.clock() - self._spend_saved > SPEND_EVERY_S:
                    self._save_spend()
                if self._monitor.is_due():
                    self._show()
        if not self.interrupted.is_set():
            for number in prune_paused(self.study):
                self.observer.finish_trial(number, "pruned")
        self._requeue_held()
        self._save_spend()
        self._show()
        if self.interrupted.is_set():
            raise InterruptedSearch("interrupted")

    def _begin(self) -> None:
        """Take over what earlier drivers of the study have left."""
        if self.log is not None:
            drop_half_line(self.log)
        self._started = self._spend_saved = self.clock()
        self._spent_before, ledger = load_spend(self.study)
        self._allowance = Allowance(self.budget, self.predictor, ledger)
        self._monitor = Monitor(
            study=self.study.study_name,
            stage=self.stage,
            total=self.trials,
            dispatcher=self.dispatcher,
            allowance=self._allowance,
            watchers=self.watchers,
            clock=self.clock,
        )
        for spec, result in last_results(self.study, RESULTS_READ):
            self.predictor.add_result(spec, result)
        requeue_running(self.study)
        self._history = History.of(self.study)
        self._outlook = self.judge()
        for trial in paused_trials(self.study):
            why = trial.user_attrs["detail"]
            retries = trial.user_attrs.get("retries", 0)
            flight = InFlight(trial, self.propose(trial), retries, paused=True, held_because=why)
            self._paused[trial.number] = flight

    # --- starting trials -----------------------------------------------------------------------

    def _fill(self) -> None:
        """Start trials as far as room and budgets go: held, queued, paused ones, then new ones."""
        for number, flight in () if self._has_enough else sorted(self._held.items()):
            if not self._may_start() or len(self._in_flight) >= self._limit():
                return
            if self._lacking(flight.spec) is None:
                del self._held[number]
                self._launch(flight)
        while len(self._in_flight) < self._limit():
            if not self._history.waiting and self._continue_paused():
                continue
            if not self._may_ask():
                return
            trial = self._ask()
            spec = self.propose(trial)
            if self.stage == "search" and not {"arm", ASKED} & trial.user_attrs.keys():
                ran = self._history.trials(self.trials).complete
                set_attributes(trial, **{ASKED: {"finished": ran}})
            self._launch(InFlight(trial, spec, trial.user_attrs.get("retries", 0)))

    def _limit(self) -> int:
        if self.concurrency is not None:
            return self.concurrency
        return self.dispatcher.capacity([f.spec.resources for f in self._in_flight.values()])

    def _may_start(self) -> bool:
        return not self.interrupted.is_set() and self._limited() is None

    def _may_ask(self) -> bool:
        if not self._may_start() or len(self._held) >= MAX_HELD:
            return False
        history = self._history
        # A refused trial has cost nothing, and others may fit.
        ran = history.failed - history.refused
        all_failed = history.failed == history.ended and ran >= MAX_FAILURES_IN_A_ROW
        if all_failed and not self._in_flight:
            self._requeue_held()
            raise NoResultError(
                f"the first {history.failed} trials all failed; the last one: "
                f"{history.last_failure}"
            )
        if self._has_enough and not history.waiting:
            return False
        return self._left >= ONE

    @property
    def _left(self) -> float:
        """Trainings that are not used, if all trials in flight are trained to their end."""
        return self.trials - self._history.used - len(self._in_flight) - len(self._held)

    @property
    def _able_to_continue(self) -> dict[int, InFlight]:
        """The paused trials that there is enough left for."""
        return {n: f for n, f in self._paused.items() if self._left + _paused_at(f) >= ONE}

    @property
    def _has_enough(self) -> bool:
        """Whether the study ends by itself."""
        return self._outlook is not None and self._outlook.ended_by is not None

    def _limited(self) -> str | None:
        """The budget that is used up, as a text for people; None if none is."""
        used = self._allowance.ledger.so_far(self.clock())
        return self.budget.reached(replace(used, wall_s=self._spent()))

    def _spent(self) -> float:
        """Wall-clock seconds of all drivers of this study."""
        return self._spent_before + self.clock() - self._started

    def _ask(self) -> optuna.Trial:
        """Ask for the next trial. One that a restarting server cut off is queued and asked again.

        Raises:
            StorageInternalError, OperationalError: the storage fails every time.
        """
        for attempt in range(ASK_ATTEMPTS):
            expected = self._history.next_number
            self.study.sampler = self.sampler(expected)
            last = attempt == ASK_ATTEMPTS - 1
            with suppress(*(() if last else CONNECTION_LOST)):
                trial = self.study.ask()
                self._history.ask(trial.number)
                if trial.number == expected or last:
                    return trial
            requeue_running(self.study, besides={*self._in_flight, *self._held})
            self._history = History.of(self.study)
        raise AssertionError

    def _launch(self, flight: InFlight, **attrs: Any) -> None:
        """Submit a trial, unless its result is known already or the budgets have no room."""
        trial, spec = flight.trial, flight.spec
        known = self._judged_by(flight)
        flight.place, flight.held_because, flight.paused = known.get("place", 0), None, False
        if known:
            attrs[JUDGED_BY] = known
        describe(trial, spec, **attrs)
        self._in_flight[spec.number] = flight
        self.observer.trial(spec.number, spec.policy_label, spec.size_label)
        twin = self._history.twins.get(spec.fingerprint())
        if twin is not None:
            # A trial is a pure function of its spec: the same one is not run again.
            ran = user_attributes(self.study, self.study.get_trials(deepcopy=False)[twin])
            if copy_result(TrialSpec.model_validate_json(ran["trial_spec"]), spec):
                set_attributes(trial, same_as=twin)
        judged = attrs.get(JUDGED, trial.user_attrs.get(JUDGED))
        if (result := finished_before(spec)) is not None:
            # An earlier driver did not get to tell it.
            for rung, point in zip(spec.rungs, result.learning, strict=False):
                report_rung(trial, point.nats_per_token, rung)
            self._handle(Finished(number=spec.number, result=result))
        elif judged and judged[-1]["decision"] == "pause":
            # An earlier driver died before it told. The checkpoint may be of after that rung.
            flight.paused, flight.held_because = True, _pause_words(judged[-1])
            self._handle(Stopped(number=spec.number, reason="paused", step=0))
        elif (lacking := self._lacking(spec)) is not None:
            del self._in_flight[spec.number]
            self._hold(flight, lacking)
        else:
            self._submit(flight)

    def _judged_by(self, flight: InFlight) -> dict[str, Any]:
        """`JUDGED_BY` of a trial that is launched: as an earlier driver that launched it had it."""
        if not self.ordered or not isinstance(self.study.pruner, PausingPruner):
            return {}
        known: dict[str, Any] | None = flight.trial.user_attrs.get(JUDGED_BY)
        if known is not None and flight.held_because is None:
            return known
        beside = sorted({*self._in_flight, *self._held} - {flight.spec.number})
        place = 1 + max((other.place for other in self._in_flight.values()), default=0)
        paused = {str(number): _paused_at(other) for number, other in self._paused.items()}
        return {
            "below": self._history.asked,
            "beside": beside,
            "paused": paused,
            "place": place,
            "left": self._left,
        }

    def _submit(self, flight: InFlight) -> None:
        """Ask for a gang; a trial that fits in the memory of none fails as out of memory."""
        refusal = self.preflight(flight.spec)
        flight.move("submit")
        if refusal is None:
            self.dispatcher.submit(flight.spec)
        else:
            self._history.refused += 1
            set_attributes(flight.trial, refused=True)
            number = flight.spec.number
            self._handle(Failed(number=number, reason="out_of_memory", detail=refusal))

    # --- budgets -------------------------------------------------------------------------------

    def _lacking(self, spec: TrialSpec) -> str | None:
        """What the trial is forecast to need that the budgets do not have beside the others."""
        others = [f.spec for f in self._running() if f.spec.number != spec.number]
        return self._allowance.lacking(spec, others, self.clock())

    def _running(self) -> list[InFlight]:
        """Trials that were launched and have not ended."""
        return [f for f in self._in_flight.values() if f.state is not InFlightState.ENDED]

    def _hold(self, flight: InFlight, why: str) -> None:
        """Hold the trial until another uses less than forecast, or a driver has a larger budget."""
        set_attributes(flight.trial, reason="budget", detail=why)
        if flight.state is not InFlightState.HELD:
            flight.hold(why)
        flight.held_because = why
        self._held[flight.spec.number] = flight
        self.observer.hold_trial(flight.spec.number, why)

    def _stop_excess(self) -> None:
        """Stop running trials, at a checkpoint, that turn out not to fit the budgets."""
        specs = [flight.spec for flight in self._running() if not flight.stop_requested]
        for spec, why in self._allowance.excess(specs, self.clock()):
            self._in_flight[spec.number].held_because = why
            self._stop(self._in_flight[spec.number])

    def _stop(self, flight: InFlight, reason: StopReason = "interrupted") -> None:
        """Ask a trial to stop, once: the dispatcher counts its patience from then."""
        if not flight.stop_requested:
            flight.stop_requested = True
            self.dispatcher.stop(flight.spec.number, reason)

    def _requeue_held(self) -> None:
        """Put held trials back into the queue, and store with them which budget they wait for."""
        for flight in self._held.values():
            self._requeue(flight)
        more = self._held or self._left >= ONE or self._able_to_continue
        if more and not self._has_enough and not self.interrupted.is_set():
            self.stopped_by = self._limited()
            if self._held and not self.stopped_by:
                self.stopped_by = self.budget.nearest(self._allowance.ledger.so_far(self.clock()))
        if self.stopped_by:
            explain_waiting(self.study, self.stopped_by)

    def _requeue(self, flight: InFlight) -> None:
        requeue(self.study, flight.trial)
        self._history.wait(flight.spec.number)

    def _save_spend(self) -> None:
        self._spend_saved = self.clock()
        save_spend(self.study, self._spent(), self._allowance.ledger, self.clock())
        # The sampler's large arrays leave gaps: after 100 trials they were a fifth of all memory.
        release_freed_memory()

    # --- pausing -------------------------------------------------------------------------------

    def _pause(self, flight: InFlight) -> None:
        """Keep a trial that the pruner has stopped at a checkpoint; it counts as pruned."""
        flight.hold(flight.held_because or "")
        set_attributes(flight.trial, reason=PAUSED, detail=flight.held_because)
        self._paused[flight.spec.number] = flight
        self._history.prune(_paused_at(flight))
        self.observer.finish_trial(flight.spec.number, PAUSED)
        self._save_spend()

    def _continue_paused(self) -> bool:
        """Continue a paused trial if the best is too likely to be among them; False if not."""
        able = self._able_to_continue
        if not able or not self._may_start() or self._has_enough:
            return False
        assert isinstance(self.study.pruner, PausingPruner)
        chosen = self.study.pruner.to_continue(self.study, able, may_ask=self._may_ask())
        if chosen is None:
            return False
        number, decision = chosen
        flight = self._paused.pop(number)
        self._history.go_on(_paused_at(flight))
        self._launch(flight, **{JUDGED: [*flight.trial.user_attrs[JUDGED], decision]})
        return True

    # --- events --------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as handle:
                handle.write(f'{{"time": {time.time():.3f}, "event": {event.model_dump_json()}}}\n')
        self.observer.on_event(event)
        if isinstance(event, GangChanged):
            return
        flight = self._in_flight.get(event.number)
        if flight is None or flight.state is InFlightState.ENDED or not flight.take(event):
            return
        now = self.clock()
        self.predictor.observe(flight.spec, event, now)
        if isinstance(event, Started):
            self._monitor.first_start = self._monitor.first_start or now
            self._allowance.ledger.begin(event.number, now, flight.spec.resources)
        elif isinstance(event, Rung):
            self._decide(flight, event)
        elif isinstance(event, Finished | Stopped | Failed):
            self._allowance.ledger.end(event.number, now)
            self._end(flight, event)

    def _decide(self, flight: InFlight, rung: Rung) -> None:
        """Store a rung's score, and let the pruner decide; named arms are never pruned."""
        trial = flight.trial
        report_rung(trial, rung.nats_per_token, flight.spec.rungs[rung.index])
        before = trial.user_attrs.get("learning", ())[: rung.index]
        point = LearningPoint(**rung.model_dump(include=set(LearningPoint.model_fields)))
        set_attributes(trial, learning=[*before, point.model_dump()])
        exempt = "arm" in trial.user_attrs or self.interrupted.is_set()
        stops = not exempt and trial.should_prune()
        if not stops or not isinstance(self.study.pruner, PausingPruner):
            self.dispatcher.decide(rung.number, not stops)
            return
        flight.paused, flight.held_because = True, _pause_words(trial.user_attrs[JUDGED][-1])
        # The decision is stored, so a driver that dies here decides the same. That the trial is
        # paused is stored when it is told, in its turn: others must not know before.
        self._stop(flight, "paused")

    def _end(self, flight: InFlight, ending: Finished | Stopped | Failed) -> None:
        """Run a trial again that its machine failed, from its checkpoint if it has one.

        Raises:
            DiskFull: others would fail, too; the next driver queues this trial again.
        """
        if isinstance(ending, Failed) and ending.reason == "disk_full":
            raise DiskFull(
                f"trial {ending.number}: {ending.detail}; finished trials are kept: make room, "
                "then the same command continues the search"
            )
        preempted = isinstance(ending, Stopped) and ending.reason == "preempted"
        broken = isinstance(ending, Failed) and ending.reason in RETRIED
        if not preempted and not (broken and flight.retries < flight.spec.resources.retries):
            flight.end(ending)
            return
        flight.retries += broken
        set_attributes(flight.trial, retries=flight.retries)
        flight.move("submit")
        flight.held_because = flight.held_because or self._lacking(flight.spec)
        if self.interrupted.is_set() or flight.held_because:
            flight.end(Stopped(number=flight.spec.number, reason="interrupted", step=0))
        else:
            self.dispatcher.submit(flight.spec)

    # --- telling -------------------------------------------------------------------------------

    def _tell_ended(self) -> None:
        """Tell the trials that have ended, and start others; in ordered mode the oldest first."""
        while self._in_flight:
            order = sorted(self._in_flight.values(), key=attrgetter("place"))
            ready = [flight for flight in order if flight.ending is not None]
            if not ready or (self.ordered and ready[0] is not order[0]):
                return
            self._tell(self._in_flight.pop(ready[0].spec.number))
            if not self.interrupted.is_set():
                self._outlook = self.judge()
            self._fill()

    def _tell(self, flight: InFlight) -> None:
        """Tell the study how a trial ended, or put it back into the queue."""
        number, trial, ending = flight.spec.number, flight.trial, flight.ending
        if isinstance(ending, Finished):
            score = ending.result.lml.nats_per_token
            record_result(trial, ending.result)
            self.study.tell(number, score)
            self._history.complete(number, trial.user_attrs, score)
            state = "complete"
        elif isinstance(ending, Failed):
            remove_checkpoint(flight.spec)  # a rank that was killed has left it
            tell_failure(self.study, trial, ending)
            self._history.fail(ending.reason, ending.detail)
            state = f"failed: {ending.reason}"
        elif flight.paused:
            self._pause(flight)
            return
        elif ending is not None and ending.reason != "interrupted":
            tell_pruned(self.study, trial, f"pruned at step {ending.step}")
            self._history.prune()
            state = "pruned"
        elif flight.held_because and not self.interrupted.is_set():
            self._hold(flight, flight.held_because)
            self._save_spend()
            return
        else:
            self._requeue(flight)
            state = "interrupted"
        self.observer.finish_trial(number, state)
        self._save_spend()

    def _show(self) -> None:
        """Give the watchers the study's status."""
        self._monitor.show(
            self._history,
            self._in_flight.values(),
            self._spent(),
            self.interrupted.is_set(),
            self._outlook,
        )
