"""Ask, dispatch, report, prune, tell; resume. The one client of Optuna.

Optuna's storage is the only truth: a driver that is killed at any moment and started again with
the same command goes on. A trial that was running is put back in the queue under its own number
and parameters; a trial that had finished but was not yet told is told from its result file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import OperationalError

from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError, InterruptedSearch, LeaseLost, NoResultError
from mptune.forecast import Predictor
from mptune.lease import Lease, Unneeded
from mptune.ledger import Ledger
from mptune.paths import RunDirectory, TrialDirectory, write_aside, write_text
from mptune.spec import Pruner, Search, SearchSpec, Training, build
from mptune.specfile import Concrete
from mptune.trial import (
    RETRIED,
    Event,
    Failed,
    Finished,
    GangChanged,
    LearningPoint,
    Prepared,
    Rung,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

MAX_FAILURES_IN_A_ROW = 5
"""With nothing finished yet, this many failures mean that the spec or the machine is broken."""

STORAGE_ATTEMPTS = 10

TAUGHT = 50
"""Finished trials of earlier drivers that predictions are made from."""

JOURNAL = "journal://"

RECONNECT_S = 120.0
"""How long a search waits for a database server that went away."""

REPEATABLE = (
    "get_all_trials",
    "get_n_trials",
    "get_study_directions",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
)

CUT_OFF = (optuna.exceptions.StorageInternalError, OperationalError)
"""What a storage raises whose server went away."""

ASK_ATTEMPTS = 3

_Errors = type[Exception] | tuple[type[Exception], ...]

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

MEMORY = "memory"
"""Optuna's constraint of a trial that did not fit in memory; it is met where the value is <= 0."""

COMPARE_SEED, CONFIRM_SEED = 1_000_000, 2_000_000
"""First training seed of a comparison and of a confirmation: apart from the search's, so that
nothing is chosen twice."""

MIN_JUDGED = 4
"""Finished trials below which the importance of a dimension is not worth a word."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Observer(Protocol):
    """Whoever watches a study: a live table, a log."""

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted."""

    def on_event(self, event: Event) -> None:
        """Something happened to a trial or a gang."""

    def finish_trial(self, number: int, state: str) -> None:
        """A trial was told to the study, in this state."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the storage has it."""

    number: int
    state: str
    params: Mapping[str, Any]
    arm: str | None
    label: str
    spec: TrialSpec | None
    result: TrialResult | None
    reason: str | None
    detail: str | None
    rungs: Mapping[int, float]
    seconds: float | None
    same_as: int | None = None
    learning: tuple[LearningPoint, ...] = ()
    """At the rungs that it reached, whatever became of it."""


# --- storage -----------------------------------------------------------------------------------


def open_storage(run: RunDirectory, url: str | None) -> optuna.storages.BaseStorage:
    """Optuna's storage: SQLite in the run directory, or any RDB by URL.

    Raises:
        InputError: the URL names no reachable database.
    """
    if url is None:
        run.root.mkdir(parents=True, exist_ok=True)
    address = url or f"sqlite:///{run.database.absolute()}"
    for attempt in range(1, STORAGE_ATTEMPTS + 1):
        try:
            return _storage(address)
        except Exception as error:
            reason = str(error).splitlines()[0]
            # Two processes that meet an empty database both create its tables; one of them loses.
            if "already exists" not in reason or attempt == STORAGE_ATTEMPTS:
                raise InputError(f"storage.url: cannot open Optuna's storage: {reason}") from None
            time.sleep(0.1 * attempt)
    raise AssertionError


def _storage(address: str) -> optuna.storages.BaseStorage:
    if address.startswith(JOURNAL):
        return _journal(address)
    wait = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
    storage = optuna.storages.RDBStorage(address, engine_kwargs={"pool_pre_ping": True, **wait})
    if storage.engine.dialect.name != "sqlite":
        _outlive_restarts(storage)
    return storage


def _outlive_restarts(storage: optuna.storages.RDBStorage) -> None:
    """Wait for a server that went away after the storage was opened, and repeat what it cut off.

    What is repeated changes nothing the second time. Asking for a trial does: see
    `StudyDriver._asked`.
    """

    def connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
        return _patiently(lambda: dialect.connect(*args, **options), dialect.dbapi.OperationalError)

    sqlalchemy_event.listen(storage.engine, "do_connect", connect)
    for name in REPEATABLE:
        method = getattr(storage, name)
        setattr(storage, name, partial(_call, method, CUT_OFF))


def _call(method: Callable[..., Any], cut_off: _Errors, *args: Any, **options: Any) -> Any:
    return _patiently(lambda: method(*args, **options), cut_off)


def _patiently(attempt: Callable[[], Any], errors: _Errors) -> Any:
    give_up = time.monotonic() + RECONNECT_S
    while True:
        try:
            return attempt()
        except errors:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def _journal(address: str) -> optuna.storages.BaseStorage:
    """`journal:///a/file` is absolute, `journal://a/file` from the current folder."""
    file = Path(address.removeprefix(JOURNAL))
    file.parent.mkdir(parents=True, exist_ok=True)
    backend = JournalFileBackend(str(file))
    return optuna.storages.JournalStorage(backend)


def has_study(run: RunDirectory, url: str | None, name: str) -> bool:
    """Whether the storage already holds the study."""
    if url is None and not run.database.exists():
        return False
    return name in optuna.study.get_all_study_names(open_storage(run, url))


def _existing(run: RunDirectory, url: str | None, name: str) -> optuna.Study | None:
    """The study, opened once; None if there is none."""
    if url is None and not run.database.exists():
        return None
    with suppress(KeyError):
        return optuna.load_study(study_name=name, storage=open_storage(run, url))
    return None


def delete_studies(run: RunDirectory, url: str | None, names: Sequence[str]) -> None:
    """Remove studies from the storage, for `--fresh`."""
    storage = open_storage(run, url)
    for name in names:
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)


def copy_studies(run: RunDirectory, url: str | None, name: str, database: Path) -> None:
    """Copy all studies of a search, trials and attributes, to an SQLite file of their own."""
    there = open_storage(run, url)
    here = f"sqlite:///{database.absolute()}"
    for study_name in names(name):
        if has_study(run, url, study_name):
            optuna.copy_study(from_study_name=study_name, from_storage=there, to_storage=here)


def compare_name(name: str) -> str:
    """The study that holds a search's comparison."""
    return f"{name}/compare"


def confirm_name(name: str) -> str:
    """The study that holds a search's confirmation."""
    return f"{name}/confirm"


def names(name: str) -> tuple[str, str, str]:
    """All studies of a search: itself, its confirmation, its comparison."""
    return name, confirm_name(name), compare_name(name)


def records(run: RunDirectory, url: str | None, name: str) -> list[TrialRecord]:
    """Every trial of a study in order of number; empty if there is no such study."""
    study = _existing(run, url, name)
    return [_record(t) for t in study.get_trials(deepcopy=False)] if study else []


def spent_s(run: RunDirectory, url: str | None, name: str) -> float:
    """Wall-clock seconds that drivers of this study have run, over all resumes."""
    if not has_study(run, url, name):
        return 0.0
    study = optuna.load_study(study_name=name, storage=open_storage(run, url))
    return float(study.user_attrs.get("spent_s", 0.0))


def ledger(run: RunDirectory, url: str | None, name: str) -> Ledger:
    """What the trials of this study have used, over all resumes."""
    if not has_study(run, url, name):
        return Ledger()
    study = optuna.load_study(study_name=name, storage=open_storage(run, url))
    return Ledger.from_json(study.user_attrs.get("ledger"))


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    spec, result = attrs.get("trial_spec"), attrs.get("result")
    return TrialRecord(
        number=trial.number,
        state="FAIL" if _failed(trial) else trial.state.name,
        params=trial.params,
        arm=attrs.get("arm"),
        label=attrs.get("label", ""),
        spec=TrialSpec.model_validate_json(spec) if spec else None,
        result=TrialResult.model_validate_json(result) if result else None,
        reason=attrs.get("reason"),
        detail=attrs.get("detail"),
        rungs=trial.intermediate_values,
        seconds=attrs.get("cost_total_s"),
        same_as=attrs.get("same_as"),
        learning=tuple(LearningPoint(**point) for point in attrs.get("learning", ())),
    )


# --- one driver at a time ----------------------------------------------------------------------


@contextmanager
def driver_lock(run: RunDirectory) -> Iterator[None]:
    """Hold the run directory; the kernel lets go of it when the driver dies, however it dies.

    Raises:
        InputError: another process drives this run; it is named.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with run.lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise InputError(
                f"{run.root} is being searched by {handle.read().strip() or 'another process'}; "
                "wait for it, stop it, or give another --run-dir"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def is_driven(run: RunDirectory) -> bool:
    """Whether a living driver holds the run directory."""
    if not run.lock.exists():
        return False
    with run.lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False


@contextmanager
def _interrupts(asked: threading.Event) -> Iterator[None]:
    """First Ctrl-C or SIGTERM sets `asked`; a second one ends the process at once."""

    def on_signal(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- proposals ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialFactory:
    """Turns a concrete spec into the trial that a worker runs."""

    study: str
    folder: str
    run: RunDirectory
    prepared: Prepared
    data: Mapping[str, Any]
    rungs: tuple[float, ...] = ()
    artifacts: str | None = None
    """URL of the search's artifacts, if they are not in the run directory."""

    def make(self, concrete: Concrete, number: int, seed: int) -> TrialSpec:
        """The TrialSpec of trial `number`."""
        spec = SearchSpec.model_validate(concrete.tree)
        policy, model = build("policy", spec.policy), self._sized(build("model", spec.model))
        parameters = model.parameters(self.prepared.vocabulary_size + 2, self.prepared.length)
        directory = self.run.trial(number, self.folder).root
        return TrialSpec(
            study=self.study,
            number=number,
            label=f"{policy.words()} · {model.words()}",
            seed=seed,
            data=dict(self.data),
            model=model.model_dump(mode="json"),
            policy=policy.model_dump(mode="json"),
            training=self._training(spec.training),
            score=spec.score,
            rungs=self.rungs,
            resources=spec.resources.for_model(parameters),
            prepared=self.prepared,
            directory=str(directory.absolute()),
            artifacts=self.artifacts
            and f"{self.artifacts}/{directory.relative_to(self.run.root).as_posix()}",
        )

    def _training(self, training: Training) -> Training:
        """With the precision that `auto` means: a trial is a pure function of its spec."""
        if training.precision != "auto":
            return training
        return training.model_copy(update={"precision": self.prepared.precision})

    def _sized(self, model: Any) -> Any:
        """The model with its width and depth, if the spec gives a parameter count."""
        try:
            return model.sized(self.prepared.vocabulary_size + 2, self.prepared.length)
        except ValueError as error:
            raise InputError(f"model.{error}") from None


def make_sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose proposal depends on the seed, the trial's number and the history alone."""
    seed = (search.seed * 1_000_003 + number) % 2**31
    match search.sampler.kind:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=search.sampler.startup_trials
            )
        case "gp":
            return _gp(seed, search.sampler.startup_trials)
        case "tpe":
            return _tpe(seed, search.sampler.startup_trials)


def _tpe(seed: int, startup_trials: int) -> optuna.samplers.TPESampler:
    """Multivariate, with conditional dimensions grouped; running trials count as poor ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def _gp(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _GPSampler(seed=seed, n_startup_trials=startup_trials)


class _GPSampler(optuna.samplers.GPSampler):
    """Optuna's, which reads constraints of complete trials only, with those that did not fit."""

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, Any],
    ) -> dict[str, Any]:
        pruned = study.get_trials(deepcopy=True, states=(TrialState.PRUNED,))
        unfit = [t for t in pruned if _failed(t) and search_space.keys() <= t.params.keys()]
        if unfit:
            completed_trials = [deepcopy(t) for t in completed_trials]
            worst = min(float(t.value or 0.0) for t in completed_trials)
            for trial in completed_trials:
                trial.set_constraint(MEMORY, -1.0)
            for trial in unfit:
                trial.state, trial.value = TrialState.COMPLETE, worst
        found: dict[str, Any] = super()._sample_relative_impl(
            study, completed_trials + unfit, running_trials, search_space
        )
        return found


def make_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Optuna's own pruner for the spec's section."""
    match pruner.kind:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup_trials)
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=_percent(pruner.rungs[0]) if pruner.rungs else 1
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=_percent(pruner.rungs[0]) if pruner.rungs else 1, max_resource=100
            )


def _percent(progress: float) -> int:
    return max(1, round(100 * progress))


# --- the driver --------------------------------------------------------------------------------


@dataclass
class _InFlight:
    trial: optuna.Trial
    spec: TrialSpec
    retries: int = 0
    ending: Finished | Stopped | Failed | None = None


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
    lease: Lease = field(default_factory=Unneeded)
    interrupted: threading.Event = field(default_factory=threading.Event)
    predictor: Predictor = field(default_factory=Predictor)
    _flight: dict[int, _InFlight] = field(default_factory=dict)
    _order: deque[int] = field(default_factory=deque)
    _spent_before: float = 0.0
    _started: float = 0.0
    _ledger: Ledger = field(default_factory=Ledger)

    def run(self) -> None:
        """Run until every trial has ended.

        Raises:
            InterruptedSearch: Ctrl-C or SIGTERM; what ran is queued again under its number.
            NoResultError: the first trials all failed.
            LeaseLost: another driver has taken the study over.
        """
        self._started = time.monotonic()
        self._spent_before = float(self.study.user_attrs.get("spent_s", 0.0))
        self._ledger = Ledger.from_json(self.study.user_attrs.get("ledger"))
        teach(self.predictor, self.study)
        requeue_running(self.study)
        with _interrupts(self.interrupted):
            self._fill()
            while self._flight:
                self._stop_if_interrupted()
                events = self.dispatcher.events(timeout_s=0.5)
                self._check_lease()
                for event in events:
                    self._handle(event)
                self._settle()
        self._save_spend()
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
        if not self._ledger.allows(
            time.monotonic(), len(self._flight), self.budget_worker_seconds, self.budget_gpu_hours
        ):
            return False
        found = self.study.get_trials(deepcopy=False, states=ENDED)
        self._refuse_hopeless(found)
        return len(found) + len(self._flight) < self.trials

    def _over_budget(self) -> bool:
        return self.budget_seconds is not None and self._spent() >= self.budget_seconds

    def _spent(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _save_spend(self) -> None:
        self.study.set_user_attr("spent_s", round(self._spent(), 3))
        self.study.set_user_attr("ledger", self._ledger.as_json())

    def _refuse_hopeless(self, ended: Sequence[FrozenTrial]) -> None:
        failed = [t for t in ended if _failed(t)]
        if len(failed) == len(ended) and len(failed) >= MAX_FAILURES_IN_A_ROW and not self._flight:
            last = failed[-1].user_attrs
            raise NoResultError(
                f"the first {len(failed)} trials all failed; the last one: "
                f"{last.get('reason')}: {last.get('detail')}"
            )

    def _ask(self) -> None:
        trial = self._asked()
        spec = self.propose(trial)
        _describe(trial, spec)
        self._flight[spec.number] = _InFlight(trial, spec, trial.user_attrs.get("retries", 0))
        self._order.append(spec.number)
        self.observer.trial(spec.number, *spec.label.split(" · ", 1))
        self._take_over_twin(trial, spec)
        result = _finished_before(spec)
        if result is not None:
            self._replay(spec, result)
        else:
            self.dispatcher.submit(spec)

    def _asked(self) -> optuna.Trial:
        """The next trial. One whose answer a restarting server cut off is queued and asked again.

        Raises:
            StorageInternalError, OperationalError: the storage fails every time.
        """
        for _ in range(ASK_ATTEMPTS - 1):
            expected = _next_number(self.study)
            self.study.sampler = self.sampler(expected)
            with suppress(*CUT_OFF):
                trial = self.study.ask()
                if trial.number == expected:
                    return trial
            requeue_running(self.study, besides=self._flight)
        self.study.sampler = self.sampler(_next_number(self.study))
        return self.study.ask()

    def _take_over_twin(self, trial: optuna.Trial, spec: TrialSpec) -> None:
        """A trial is a pure function of its spec: one that has been run is not run again."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        fingerprint = spec.fingerprint()
        for twin in done:
            attrs = twin.user_attrs
            if attrs.get("fingerprint") == fingerprint and "same_as" not in attrs:
                ran = TrialSpec.model_validate_json(attrs["trial_spec"])
                own = TrialDirectory.of(spec.directory)
                write_text(own.spec, spec.model_dump_json(indent=2))
                _copy_outcome(TrialDirectory.of(ran.directory), own)
                _set(trial, same_as=twin.number)
                return

    def _replay(self, spec: TrialSpec, result: TrialResult) -> None:
        """A result that was written but not told: tell it, do not train it again."""
        trial = self._flight[spec.number].trial
        for progress, value in result.rungs:
            _report(trial, value, progress)
        self._handle(Finished(number=spec.number, result=result))

    def _handle(self, event: Event) -> None:
        self._log(event)
        self.observer.on_event(event)
        if isinstance(event, GangChanged):
            return
        flight = self._flight.get(event.number)
        if flight is None:
            return
        self.predictor.observe(flight.spec, event, time.monotonic())
        if isinstance(event, Started):
            self._ledger.begin(event.number, time.monotonic(), flight.spec.resources)
        if isinstance(event, Rung):
            self._decide(flight, event)
        elif isinstance(event, Finished | Stopped | Failed):
            self._ledger.end(event.number, time.monotonic())
            self._end(flight, event)

    def _end(self, flight: _InFlight, ending: Finished | Stopped | Failed) -> None:
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
            _set(flight.trial, retries=flight.retries)
            self.dispatcher.submit(flight.spec)

    def _decide(self, flight: _InFlight, rung: Rung) -> None:
        _report(flight.trial, rung.nats_per_token, rung.progress)
        before = [p for p in flight.trial.user_attrs.get("learning", ()) if _earlier(p, rung)]
        point = LearningPoint(**rung.model_dump(include=set(LearningPoint.model_fields)))
        _set(flight.trial, learning=[*before, point.model_dump()])
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

    def _tell(self, flight: _InFlight) -> None:
        number, trial, ending = flight.spec.number, flight.trial, flight.ending
        if isinstance(ending, Finished):
            _record_result(trial, ending.result)
            self.study.tell(number, ending.result.lml.nats_per_token)
            self.observer.finish_trial(number, "complete")
        elif isinstance(ending, Stopped) and ending.reason == "interrupted":
            _requeue(self.study, trial._trial_id)
            self.observer.finish_trial(number, "interrupted")
        elif isinstance(ending, Stopped):
            _set(trial, reason="pruned", detail=f"pruned at step {ending.step}")
            self.study.tell(number, state=TrialState.PRUNED)
            self.observer.finish_trial(number, "pruned")
        elif isinstance(ending, Failed):
            _tell_failure(self.study, trial, ending)
            self.observer.finish_trial(number, f"failed: {ending.reason}")
        self._save_spend()

    def _stop_if_interrupted(self) -> None:
        if self.interrupted.is_set():
            for number, flight in self._flight.items():
                if flight.ending is None:
                    self.dispatcher.stop(number, "interrupted")

    def _log(self, event: Event) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as handle:
                handle.write(f'{{"time": {time.time():.3f}, "event": {event.model_dump_json()}}}\n')


def _tell_failure(study: optuna.Study, trial: optuna.Trial, failure: Failed) -> None:
    """A failure, in the state from which samplers learn what can be learned.

    They leave failed trials out. Of one that did not fit in memory they are to learn where there
    is no room: Optuna has that as a violated constraint, of trials that are not failed.
    """
    _set(trial, reason=failure.reason, detail=failure.detail)
    state = TrialState.FAIL
    if failure.reason == "out_of_memory":
        trial.set_constraint(MEMORY, 1.0)
        state = TrialState.PRUNED
    study.tell(trial.number, state=state)


def _failed(trial: FrozenTrial) -> bool:
    """Whether it failed, also if Optuna's state says otherwise; see `_tell_failure`."""
    return trial.state == TrialState.FAIL or trial.constraints.get(MEMORY, 0.0) > 0


def teach(predictor: Predictor, study: optuna.Study) -> None:
    """Tell how long the last trials of a study took that has run before."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ran = [t for t in finished if "result" in t.user_attrs and "same_as" not in t.user_attrs]
    for trial in ran[-TAUGHT:]:
        spec = TrialSpec.model_validate_json(trial.user_attrs["trial_spec"])
        predictor.learn(spec, TrialResult.model_validate_json(trial.user_attrs["result"]))


def _next_number(study: optuna.Study) -> int:
    """The number that `ask` will give: the oldest waiting trial, else a new one."""
    trials = study.get_trials(deepcopy=False)
    waiting = [t.number for t in trials if t.state == TrialState.WAITING]
    return min(waiting, default=len(trials))


def requeue_running(study: optuna.Study, besides: Container[int] = ()) -> list[int]:
    """Put the trials of a dead driver back in the queue, under their numbers and parameters."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    running = [trial for trial in found if trial.number not in besides]
    for trial in running:
        _requeue(study, trial._trial_id)
    return [t.number for t in running]


def requeue(run: RunDirectory, url: str | None, name: str) -> list[int]:
    """`requeue_running` of a study by its name, for `mptune fsck`."""
    return requeue_running(optuna.load_study(study_name=name, storage=open_storage(run, url)))


def _requeue(study: optuna.Study, trial_id: int) -> None:
    study._storage.set_trial_state_values(trial_id, state=TrialState.WAITING)


def _report(trial: optuna.Trial, value: float, progress: float) -> None:
    """Report at a rung; the step is the progress in percent. A repeated rung changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trial.report(value, _percent(progress))


def _earlier(point: Mapping[str, Any], rung: Rung) -> bool:
    return float(point["progress"]) < rung.progress


def _set(trial: optuna.Trial, **attrs: Any) -> None:
    for key, value in attrs.items():
        trial.set_user_attr(key, value)


def _describe(trial: optuna.Trial, spec: TrialSpec) -> None:
    policy, size = spec.label.split(" · ", 1)
    _set(
        trial,
        label=spec.label,
        policy=policy,
        size=size,
        seed=spec.seed,
        fingerprint=spec.fingerprint(),
        trial_spec=spec.model_dump_json(),
    )


def _record_result(trial: optuna.Trial, result: TrialResult) -> None:
    """Everything a person or a dashboard may want, flat; and the whole result as JSON."""
    lml, cost = result.lml, result.cost
    tokens = lml.nats_per_sequence / lml.nats_per_token if lml.nats_per_token else 1.0
    _set(
        trial,
        lml_nats_per_token=lml.nats_per_token,
        lml_nats_per_sequence=lml.nats_per_sequence,
        lml_se_nats_per_token=lml.se_population / tokens,
        bits_per_byte=lml.bits_per_byte,
        prequential_nats_per_token=result.prequential,
        **{f"lml_shift/{n}": s.nats_per_token for n, s in result.lml_shift.items()},
        **{f"loss_at_{100 * r.rate:g}%": r.loss for r in result.rates},
        **{f"masked_accuracy_at_{100 * r.rate:g}%": r.accuracy for r in result.rates},
        **{f"cost_{k}": v for k, v in cost.model_dump().items()},
        versions=result.versions,
        result=result.model_dump_json(),
    )


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


# --- opening a study ---------------------------------------------------------------------------


def open_study(
    run: RunDirectory, url: str | None, name: str, *, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """Create or load the study, with the metric named for whoever opens a dashboard."""
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(run, url),
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["LML (nats per token)"])
    return study


def claim_spec(study: optuna.Study, resolved: Mapping[str, Any]) -> None:
    """Bind the study to its spec; a resume with another one is refused.

    Raises:
        InputError: the stored spec differs in something that changes results.
    """
    wanted = _binding(resolved)
    stored = study.user_attrs.get("spec")
    if stored is None:
        study.set_user_attr("spec", json.dumps(wanted, sort_keys=True))
        return
    differences = list(_differences(json.loads(stored), json.loads(json.dumps(wanted)), ""))
    if differences:
        raise InputError(
            f"study {study.study_name!r} was begun with another spec: {differences[0]}; "
            "use --fresh to start anew, or another --run-dir"
        )


_FREE = {
    "score": ("kpi", "kpi_higher_is_better", "kpi_timeout_s"),
    "search": (
        "trials",
        "budget_seconds",
        "budget_worker_seconds",
        "budget_gpu_hours",
        "concurrency",
        "confirm",
        "choose_by",
        "extrapolate_to",
    ),
    "resources": (
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "by_size",
        "trials_per_gang",
        "stall_timeout_s",
        "retries",
    ),
}
"""What may change between a search and its resume; the global batch stays on any workers."""


def _binding(resolved: Mapping[str, Any]) -> dict[str, Any]:
    bound = {k: v for k, v in resolved.items() if k not in ("compare", "storage")}
    for section, keys in _FREE.items():
        if isinstance(bound.get(section), Mapping):
            bound[section] = {k: v for k, v in bound[section].items() if k not in keys}
    return bound


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            if key in old or new[key]:  # a key that came later changes nothing while it is off
                yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{path} was {json.dumps(old)}, is {json.dumps(new)}"


def ended(study: optuna.Study) -> int:
    """How many trials have ended, in whatever state."""
    return len(study.get_trials(deepcopy=False, states=ENDED))


def set_base(study: optuna.Study, params: Mapping[str, Any]) -> None:
    """Remember the point that a comparison's arms change: it does not move with later trials."""
    study.set_user_attr("base", dict(params))


def enqueue_arms(study: optuna.Study, arms: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Queue (arm name, parameters) in order; those that are queued already are not repeated."""
    done = sum("arm" in t.user_attrs for t in study.get_trials(deepcopy=False))
    for name, params in arms[done:]:
        study.enqueue_trial(dict(params), user_attrs={"arm": name})


@dataclass(frozen=True)
class Run:
    """One run to be made: what of, with which seed, and the tree of its concrete spec.

    It is queued with its tree, so that whoever resumes need not know the arms it was queued for.
    """

    arm: str
    key: str
    seed: int
    tree: Mapping[str, Any]


def run_key(spec: TrialSpec) -> str:
    """What all seeds of an arm have in common, whatever the arm is called."""
    return spec.model_copy(update={"seed": 0, "rungs": ()}).course()


def enqueue_runs(study: optuna.Study, runs: Sequence[Run]) -> int:
    """Queue the runs that are not there yet; returns the study's trials."""
    known = [_run_of(t) for t in study.get_trials(deepcopy=False)]
    new = [run for run in runs if (run.key, run.seed) not in known]
    for run in new:
        attrs = {"arm": run.arm, "run_key": run.key, "tree": dict(run.tree)}
        study.enqueue_trial({"seed": run.seed}, user_attrs=attrs)
    return len(known) + len(new)


def _run_of(trial: FrozenTrial) -> tuple[str | None, int | None]:
    """(run key, number of the seed) of a trial, ended, running or waiting."""
    attrs, spec = trial.user_attrs, trial.user_attrs.get("trial_spec")
    key = run_key(TrialSpec.model_validate_json(spec)) if spec else attrs.get("run_key")
    fixed = trial.system_attrs.get("fixed_params", {})
    return key, trial.params.get("seed", fixed.get("seed"))


def ask_comparison(study: optuna.Study, asked: Mapping[str, Any]) -> None:
    """Remember what was compared last, as JSON: it is what the report shows."""
    study.set_user_attr("comparison", dict(asked))


def asked_comparison(run: RunDirectory, url: str | None, name: str) -> dict[str, Any] | None:
    """What `ask_comparison` remembered of the comparison of a search, or None."""
    study = _existing(run, url, compare_name(name))
    return study.user_attrs.get("comparison") if study else None


def best(found: Sequence[TrialRecord]) -> TrialRecord:
    """The finished trial with the highest LML; the earlier one of equals.

    Raises:
        NoResultError: no trial has finished.
    """
    finished = [r for r in found if r.result is not None and r.state == "COMPLETE"]
    if not finished:
        raise NoResultError("no trial has finished, so there is nothing to recommend")
    return min(finished, key=by_score)


def by_score(record: TrialRecord) -> tuple[float, int]:
    """Sorts finished trials, best first; the earlier one of equals."""
    assert record.result is not None
    return -record.result.lml.nats_per_token, record.number


def importances(run: RunDirectory, url: str | None, name: str) -> dict[str, float]:
    """Share of the score that each dimension decides, largest first; empty with too few trials.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) over the finished trials, of the dimensions
    that all of them have: what only some have, as the rate of one of several policies, would be
    judged on a handful.
    """
    if not has_study(run, url, name):
        return {}
    found = optuna.load_study(study_name=name, storage=open_storage(run, url))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    done = [t for t in found.trials if t.state == TrialState.COMPLETE]
    if len(done) < MIN_JUDGED:
        return {}
    params = sorted(set.intersection(*(set(t.params) for t in done)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = optuna.importance.get_param_importances(
                found, evaluator=evaluator, params=params
            )
        except (ValueError, RuntimeError):  # no dimension took two values
            return {}
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}
