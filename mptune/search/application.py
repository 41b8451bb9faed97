"""Search and compare: from a spec to a finished run, stage after stage."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mptune import dispatch, status
from mptune.analysis.comparison import ArmValues, Asked, undecided_arms
from mptune.analysis.explanation import study_note
from mptune.analysis.ranking import finalists
from mptune.analysis.selection import recommended
from mptune.analysis.sequential import schedule
from mptune.artifacts import store_at
from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError, InterruptedSearch, input_errors, plural
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory, read_model, write_text
from mptune.search import kpi, tracking
from mptune.search.arms import (
    LADDER,
    RATE,
    at_rate,
    leaves_open,
    most_ladder_runs,
    own_trial,
    value_at,
    with_arms,
)
from mptune.search.budget import Budget, stage_budget
from mptune.search.driver import Observer, StudyDriver, prune_paused
from mptune.search.ending import Ending, kept_end
from mptune.search.forecast import Predictor
from mptune.search.run import DRIVEN_HERE, Run
from mptune.search.stage import FIRST_SEEDS, FRESH_PLAN, Stage
from mptune.search.tracking import TrackedView, TrackerFeed
from mptune.spec.schema import Comparison, Score, SearchSpec, build
from mptune.spec.source import Concrete, SpecFile, SpecSource, merge_arm, plain
from mptune.spec.space import Space
from mptune.status import Outlook, StageEnd, Status
from mptune.study import queue
from mptune.study.lease import PostgresLease, driver_lock, interrupts, lease
from mptune.study.optuna_private import save_note
from mptune.study.pruners import make_pruner
from mptune.study.queue import PlannedRun
from mptune.study.samplers import exposure_sampler, make_sampler
from mptune.study.storage import SUFFIXES, await_server, claim_spec
from mptune.tools.prepare import prepare_table
from mptune.trial import Prepared, PrepareRequest, StageName, Trial

OpenView: TypeAlias = Callable[[str, int, float], AbstractContextManager[Observer]]
"""Opens the view of a stage: (title, total number of trials, how many of these are used)."""


class Silence(Observer):
    """The observer that shows nothing."""


def read_spec(
    spec: SpecSource,
    overrides: Sequence[str] = (),
    run_dir: Path | str | None = None,
    arms: Sequence[str] = (),
) -> tuple[SpecFile, SearchSpec]:
    """Read and check a spec, with `arms` of a finished search as its comparison.

    Raises:
        InputError: the spec or an arm is wrong; one line per problem.
    """
    file = with_arms(spec, overrides, run_dir, arms) if arms else SpecFile.of(spec, overrides)
    # For the copy of a spec in a run directory, the stored trials have the paths of the data.
    stored = run_dir is not None and file.path == RunDirectory(Path(run_dir)).resolved
    found = file.validate(data_is_here=not stored)
    Space(file).arms()
    return file, found


def search(
    spec: SpecSource,
    run_dir: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    local: bool = False,
    observer: Observer | OpenView | None = None,
    fresh: bool = False,
    yes: bool = True,
    say: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> Run:
    """Search policies and sizes, confirm the best, and compare the spec's arms; resumes.

    Args:
        spec: path of a YAML file, its values, or a `SearchSpec`.
        run_dir: folder of the run; default `runs/NAME`. An existing run is resumed.
        overrides: changes of single values, e.g. `["training.budget_tokens=2e6"]`.
        address: an existing Ray cluster, or `auto`; default: start Ray on this machine.
        local: run trials in this process, without Ray.
        observer: gets the events of the search; see `Observer`.
        fresh: delete the run's earlier trials first; refused without `yes` if there are any.
        say: called with each note, a line of text.
        command: the shell command that resumes the run, for messages.

    Raises:
        InputError: the spec is wrong, or another process drives the run.
        InterruptedSearch: stopped on request; the same call resumes it.
        NoResultError: the first trials all failed.
        DispatchError: Ray cannot be started or reached.
    """
    file, checked = read_spec(spec, overrides, run_dir)
    session = Session(file, checked, run_dir, address, local, observer, say, command)
    with session.open(fresh=fresh, yes=yes):
        session.search()
        session.confirm()
        if session.spec.compare is not None:
            session.compare()
        session.measure_kpi()
    return session.run


def compare(
    spec: SpecSource,
    run_dir: Path | str | None = None,
    *,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    fresh: bool = False,
    yes: bool = True,
    **options: Any,
) -> Run:
    """Compare the spec's arms, or `arms` of a finished search, over paired seeds; resumes.

    Args:
        arms: as after `mptune compare --arms`, e.g. `["fixed r=0.15", "best"]`; the first is the
            baseline. Empty: those of the spec.

    The other arguments and the errors are those of `search`.
    """
    file, checked = read_spec(spec, overrides, run_dir, arms)
    session = Session(file, checked, run_dir, **options, searching=False)
    with session.open(fresh=fresh, yes=yes):
        session.compare()
        session.measure_kpi()
    return session.run


class Session:
    """Drives the stages of one run, with the dispatcher that they share."""

    def __init__(
        self,
        file: SpecFile,
        spec: SearchSpec,
        run_dir: Path | str | None = None,
        address: str | None = None,
        local: bool = False,
        observer: Observer | OpenView | None = None,
        say: Callable[[str], None] = lambda line: None,
        command: str = "",
        searching: bool = True,
    ) -> None:
        """The session of a checked spec; nothing is written or started yet.

        Args:
            searching: whether the search's budgets apply, also to confirmation and comparison.

        The other arguments are those of `search`.

        Raises:
            InputError: the function of `score.kpi` cannot be imported, or `local` has no GPU for
                trials that ask for one.
        """
        kpi.check_importable(spec.score)
        if local:
            dispatch.refuse_local(spec.resources)
        directory = RunDirectory(Path(run_dir) if run_dir else Path("runs") / spec.name)
        verb = "search" if searching else "compare"
        self.run, self.file, self.searching = Run(directory, file, spec), file, searching
        self.address, self.local, self.observer, self.say = address, local, observer, say
        self.command = command or f"mptune {verb} {directory.resolved} --run-dir {directory.root}"
        self.interrupted = threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._feeds: Sequence[TrackerFeed] | None = None
        self._predictor = Predictor()
        self._lease: PostgresLease | None = None
        self._stages: dict[StageName, StageEnd] = {}
        self._ladder_runs = most_ladder_runs(file, spec.compare)

    def view(self, title: str, trials: int, used: float) -> AbstractContextManager[Observer]:
        """The observer of a stage."""
        if callable(self.observer):
            return self.observer(title, trials, used)
        return nullcontext(self.observer or Silence())

    @property
    def spec(self) -> SearchSpec:
        return self.run.spec

    @contextmanager
    def open(self, *, fresh: bool, yes: bool) -> Iterator[None]:
        """Lock the run directory and write the spec into it; stop all workers at the end.

        Raises:
            InputError: another driver holds it, or `fresh` would delete trials without `yes`.
            InterruptedSearch: with the command that resumes the run.
        """
        storage, directory = self.spec.storage, self.run.directory
        root = directory.root.resolve()
        with driver_lock(directory):
            # Registered as long as the lock is held: `stop_driver` in this process relies on it.
            DRIVEN_HERE[root] = self.interrupted
            try:
                database = storage.address()
                await_server(database, storage.connect_timeout_s, self.say, self.interrupted)
                with lease(database, self.spec.name, storage.lease_timeout_s) as self._lease:
                    if database is not None:
                        self.run.storage.open()  # now, as later the server may be away
                    if fresh:
                        self._delete_trials(yes)
                    self._write_spec()
                    left = status.read(directory)
                    self._stages = left.stages() if left else {}
                    try:
                        yield
                    finally:
                        if self._dispatcher is not None:
                            self._dispatcher.close()
                        for feed in self._feeds or ():
                            feed.close(tracking.END_TIMEOUT_S)
            except InterruptedSearch:
                raise InterruptedSearch(
                    f"interrupted; all finished work is stored. Resume with:\n  {self.command}"
                ) from None
            finally:
                del DRIVEN_HERE[root]

    def _delete_trials(self, yes: bool) -> None:
        directory = self.run.directory
        count = sum(len(self.run.storage.trials(stage)) for stage in SUFFIXES)
        if count and not yes:
            raise InputError(
                f"{directory.root} holds {plural(count, 'trial')}; --fresh deletes them, "
                "add --yes to do so"
            )
        self.run.storage.delete()
        if self._artifacts is not None:
            store_at(self._artifacts).remove()
        # Where no search has been, files of these names are somebody else's.
        for entry in directory.written() if directory.resolved.exists() else ():
            if entry not in (directory.lock, directory.driver):
                is_folder = entry.is_dir() and not entry.is_symlink()
                shutil.rmtree(entry) if is_folder else entry.unlink()

    def _write_spec(self, *, accepted: bool = False) -> None:
        """Write the spec into the run directory; on a resume only once it was accepted."""
        resolved = yaml.safe_dump(self.file.resolved(self.spec), sort_keys=False)
        if accepted or not self.run.directory.resolved.exists():
            write_text(self.run.directory.spec, self.file.text)
            write_text(self.run.directory.resolved, resolved)

    def dispatcher(self) -> Dispatcher:
        """The dispatcher, started at the first call: a finished run needs no Ray."""
        if self._dispatcher is None:
            self._dispatcher = dispatch.make(
                self.spec.resources,
                local=self.local,
                address=self.address,
                forecast=self._predictor,
                run=self.run.directory,
            )
        return self._dispatcher

    def feeds(self) -> Sequence[TrackerFeed]:
        """Those of the trackers, opened at the first call."""
        if self._feeds is None:
            self._feeds = tracking.feeds(self.spec, self.run.directory, self.say)
        return self._feeds

    @property
    def _artifacts(self) -> str | None:
        """URL of this run's folder in a storage that runs share; None is the run directory."""
        root = self.spec.storage.artifacts
        return None if root is None else f"{root.rstrip('/')}/{self.spec.name}"

    # --- preparing -----------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """The data section with its paths absolute.

        Relative paths start at the original spec, not at its copy in the run directory: for the
        copy, the section of a stored trial is used.
        """
        if self.file.path == self.run.directory.resolved:
            for stage in SUFFIXES:
                for trial in self.run.storage.trials(stage):
                    if trial.spec is not None:
                        return trial.spec.data
        modality = build("data", self.spec.data).resolved(self.file.path.absolute().parent)
        return modality.model_dump(mode="json")

    def _checkpoints(self) -> tuple[dict[str, Any], ...]:
        """The checkpoints to go on from, those of named arms too, each once.

        What of one is frozen or adapted does not matter before it is trained.
        """
        models = [probe.tree["model"] for probe in self.file.probes()]
        arms = [arm for stage in ("search", "compare") for arm in self.file.arms(stage).values()]
        models += [plain(arm).get("model", {}) for arm in arms]
        models = [{k: m[k] for k in ("from", "revision") if k in m} for m in models if "from" in m]
        found = {json.dumps(m, sort_keys=True): m for m in models}
        return tuple(found.values())

    def prepared(self, score: Score | None = None) -> Prepared:
        """The token table and the frozen plan, prepared once per run directory.

        With `score`, the fresh plan of a confirmation.

        Raises:
            InputError: the data are missing or broken; one line names the place.
        """
        directory = self.run.directory
        file, plan = directory.prepared, directory.plan
        if score is not None:
            file, plan = directory.confirm_prepared, directory.confirm_plan
        known = read_model(file, Prepared)
        if known and Path(known.table).is_dir() and Path(known.plan).is_file():
            return known
        sections = (probe.tree.get("training", {}) for probe in self.file.probes())
        automatic = any(section.get("precision") == "auto" for section in sections)
        request = PrepareRequest(
            data=self.data(),
            score=score or self.spec.score,
            cache=str(cache_directory() / "tables"),
            plan=str(plan.absolute()),
            measure_precision=automatic and score is None,
            checkpoints=self._checkpoints() if score is None else (),
        )
        if self.address is None:
            # Prepare the table in this process while the workers start: its progress is visible.
            self.dispatcher().warm_up()
            with input_errors(f"{self.file.origin_of('data')}: ", InputError):
                prepare_table(request.data, Path(request.cache))
        prepared = self.dispatcher().prepare(request)
        if score is not None:
            # It may be prepared on another device, with another precision.
            prepared = prepared.model_copy(update={"precision": self.prepared().precision})
        write_text(file, prepared.model_dump_json(indent=2) + "\n")
        return prepared

    # --- stages --------------------------------------------------------------------------------

    def search(self) -> None:
        """Run the search until it is sure enough, or to its number of trials.

        Raises:
            InterruptedSearch, NoResultError, LeaseLost: see `StudyDriver.run`.
            InputError: the run was started with another spec.
        """
        study = self.run.storage.create("search")
        claim_spec(study, self.file.resolved(self.spec))
        self._write_spec(accepted=True)
        queue.enqueue_arms(study, Space(self.file).arms())
        total, found = self.spec.search.trials, self.run.outlook()
        over = kept_end(self.run) is not None and queue.is_drained(study)
        if over:
            self.say(
                "note: search: it has ended by itself (`mptune explain` says why); with a larger "
                "search.certainty, or null, the same command continues"
            )
        # The last driver may have died before it stored how sure the search is after all trials.
        is_closed = found is None or (
            found.ended_by is not None and found.trials == queue.ended(study)
        )
        if not (is_closed and (over or queue.is_full(study, total))):
            stage = self._stage("search", self.prepared(), self.spec.search.seed)
            rungs = self.spec.search.rungs
            stage = replace(stage, total=total, rungs=rungs, space=Space(self.file))
            ending = Ending(self.run, stage, study)
            is_complete = over or self.drive(stage, study, ending)
            ending.close("trials" if is_complete else "budget")
            self._note_study(study, stage.name)

    def confirm(self) -> None:
        """Train the best trials again with fresh seeds, and score them on a fresh plan."""
        wanted = self.spec.search.confirm
        rule = self.spec.search.choose_by
        top = finalists(self.run.storage.trials("search"), wanted.top, rule)
        if len(top) < 2:
            return
        score = self.spec.score.model_copy(update={"seed": self.spec.score.seed + FRESH_PLAN})
        stage = self._stage("confirmation", self.prepared(score), FIRST_SEEDS["confirmation"])
        runs: list[PlannedRun] = []
        for trial in top:
            found = Space(self.file).at(trial.params)
            tree = {**found.tree, "score": score.model_dump(mode="json")}
            key = stage.make(Concrete(tree, {}), 0, 0).run_key()
            runs += [
                PlannedRun(f"trial {trial.number}", key, seed, tree, trial.number)
                for seed in range(wanted.seeds)
            ]
        runs.sort(key=lambda run: run.seed)  # seed by seed: paired, even when interrupted
        self.drive(replace(stage, runs=tuple(runs)))

    def compare(self) -> None:
        """Run the spec's comparison: every arm on every paired seed, more seeds until decided.

        Raises:
            InputError: the spec has no `compare`, or a dimension without a value.
        """
        comparison = self.spec.compare
        if comparison is None:
            raise InputError(f"{self.file.path}: compare: is missing; name at least two arms there")
        study = self.run.storage.create("comparison")
        rungs = (*comparison.rungs, 1.0) if comparison.rungs else ()
        stage = self._stage("comparison", self.prepared(), FIRST_SEEDS["comparison"])
        stage = replace(stage, rungs=rungs)
        found = self._arms(study, comparison, stage)
        if found is None:
            return
        arms, values = found
        keys: dict[str, str] = {}
        for name, concrete in arms.items():
            key = stage.make(concrete, 0, 0).run_key()
            same = next((other for other, known in keys.items() if known == key), None)
            if same is not None:
                raise InputError(f"compare.arms: {same!r} and {name!r} are the same; leave one out")
            keys[name] = key
        asked = Asked(comparison=comparison, keys=keys, values=values)
        study.set_user_attr("comparison", asked.model_dump(mode="json"))
        names, seeds = list(arms), 0
        for look in schedule(comparison.seeds, comparison.max_seeds):
            more = tuple(
                PlannedRun(arm, keys[arm], seed, arms[arm].tree)
                for seed in range(seeds, look)  # seed by seed: paired, even when interrupted
                for arm in names
            )
            stage, seeds = replace(stage, runs=(*stage.runs, *more)), look
            if not self.drive(stage, study):
                return
            kept = {(run.key, run.seed) for run in stage.runs}
            seen = [
                trial
                for trial in self.run.storage.trials("comparison")
                if trial.spec and (trial.spec.run_key(), trial.params["seed"]) in kept
            ]
            names = undecided_arms(asked, seen, stage.prepared, self.run.group_scores)
            if not names:
                return

    def _stage(self, name: StageName, prepared: Prepared, first_seed: int) -> Stage:
        return Stage(
            name=name,
            run=self.run.directory,
            study=self.run.storage.study_name(name),
            prepared=prepared,
            data=self.data(),
            first_seed=first_seed,
            artifacts=self._artifacts,
        )

    def drive(
        self, stage: Stage, study: Any = None, judge: Callable[[], Outlook | None] = lambda: None
    ) -> bool:
        """Run a stage to its last trial, its end by itself, or, which is False, that of its budget.

        Raises:
            InterruptedSearch, NoResultError, LeaseLost: see `StudyDriver.run`.
        """
        study = study or self.run.storage.create(stage.name)
        total = queue.enqueue_runs(study, stage.runs) if stage.runs else stage.total
        used, is_full = queue.trainings_used(study), queue.is_full(study, total)
        spent, budget = {s: self.run.used(s) for s in SUFFIXES}, Budget()
        if self.searching:
            budget = stage_budget(self.spec, stage.name, spent, self._ladder_runs)
        stopped_by = None if is_full else budget.reached(spent[stage.name])
        if is_full or stopped_by is not None:  # the last driver may have died before this
            queue.requeue_running(study)
            prune_paused(study)
            if stopped_by is not None:
                queue.explain_waiting(study, stopped_by)
        else:
            settings, dispatcher, prepared = self.spec.search, self.dispatcher(), stage.prepared
            exposure = exposure_sampler(settings, stage.define, prepared.mean_length)
            self._note_study(study, stage.name)
            if stage.rungs:
                study.pruner = make_pruner(settings, prepared.mean_length, exposure)
            with self.view(f"{self.spec.name}: {stage.name}", total, used) as view:
                tracked = TrackedView(view, stage, self.feeds(), study, settings)
                look = [view.look] if hasattr(view, "look") else []
                driver = StudyDriver(
                    study=study,
                    stage=stage.name,
                    trials=total,
                    propose=tracked.propose,
                    dispatcher=dispatcher,
                    observer=tracked,
                    sampler=lambda number: exposure or make_sampler(settings, number),
                    concurrency=settings.concurrency,
                    ordered=settings.ordered,
                    budget=budget,
                    log=self.run.directory.events,
                    predictor=self._predictor,
                    lease=self._lease,
                    interrupted=self.interrupted,
                    watchers=(*look, self._write_status, dispatcher.publish),
                    judge=judge,
                    preflight=partial(memory.refusal, holds=dispatcher.device),
                )
                driver.run()
            stopped_by = driver.stopped_by
        if stopped_by is not None:
            self.say(
                f"note: {stage.name}: {queue.trainings_used(study):g} of {plural(total, 'trial')} "
                f"are done, {stopped_by}; search, confirmation and comparison share the budget; "
                "with a larger one, the same command continues"
            )
        elif stage.shared:
            store_at(stage.forks).remove()
        return stopped_by is None

    def _note_study(self, study: Any, stage: StageName) -> None:
        """Say in the study what it is, for who finds it in a dashboard."""
        outlook, folder = self.run.outlook(), str(self.run.directory.root)
        save_note(study, None, study_note(self.spec.name, stage, outlook, folder))

    def _write_status(self, now: Status) -> None:
        """Write the status file; a full disk does not end the search."""
        self._stages = {**self._stages, **now.stages()}
        earlier = {stage: end for stage, end in self._stages.items() if stage != now.stage}
        with suppress(OSError):
            status.write(self.run.directory, now.model_copy(update={"earlier": earlier}))

    # --- arms of a comparison ------------------------------------------------------------------

    def _arms(
        self, study: Any, comparison: Comparison, stage: Stage
    ) -> tuple[dict[str, Concrete], tuple[ArmValues, ...]] | None:
        """Each arm's spec, and the values of training that it takes; None if a budget is used up.

        An arm is the base with the arm's changes, and the training of its own best trial
        (`mptune.search.arms`). What was taken first is stored and kept.
        """
        params: Mapping[str, Any] | None = study.user_attrs.get("base")
        if params is None:
            params = self._base_params()
            study.set_user_attr("base", dict(params))
        base, nodes = Space(self.file).at(params), self.file.arms("compare")
        changes = {name: plain(nodes[name]) for name in comparison.arms}
        arms = {n: merge_arm(base, change, nodes[n].origin) for n, change in changes.items()}
        searched = [n for n in self.file.dimensions if n.startswith("training") and n in params]
        if not searched:
            return arms, ()
        trials = self.run.storage.trials("search")
        recommended = next((t.number for t in trials if t.params == params), None)
        taken: dict[str, Any] = dict(study.user_attrs.get("values", {}))
        keys, ladder = dict[str, str](), []
        for name, change in changes.items():
            run = stage.make(arms[name], 0, 0)
            left_open = [n for n in searched if leaves_open(change, n)]
            # An arm that gives the recommended values itself is not the one that leaves them open.
            key = keys[name] = " ".join([run.run_key(), *left_open])
            if key in taken:
                continue
            if not left_open:
                taken[key] = {"source": "arm", "trial": None}
            elif own := own_trial(trials, run):
                taken[key] = {"source": "own trial", "trial": own.number}
            elif RATE in left_open:
                ladder.append(name)
            else:
                taken[key] = {"source": "recommended", "trial": recommended}
        if ladder:
            tried = self._climb({n: arms[n] for n in ladder}, float(params[RATE]))
            if tried is None:
                return None
            taken |= {keys[name]: {"source": "ladder", "tried": tried[name]} for name in ladder}
        study.set_user_attr("values", taken)
        values = []
        for name, change in changes.items():
            found = taken[keys[name]]
            if found["source"] == "own trial":
                own = next(t for t in trials if t.number == found["trial"])
                arms[name] = self._with_training_of(own, base, change, nodes[name].origin)
            elif found["source"] == "ladder":
                scores = {rate: score for rate, score in found["tried"] if score is not None}
                rate = max(scores, key=scores.__getitem__, default=params[RATE])
                arms[name] = at_rate(arms[name], rate)
            held = {n: value_at(arms[name].tree, n, params[n]) for n in searched}
            values.append(ArmValues(arm=name, values=held, **found))
            self.say(f"note: {values[-1].sentence()}")
        return arms, tuple(values)

    def _with_training_of(
        self, own: Trial, base: Concrete, change: Mapping[str, Any], origin: str
    ) -> Concrete:
        """The base with a trial's training, except its budget, and an arm's changes."""
        training = {
            key: value
            for key, value in Space(self.file).at(own.params).tree["training"].items()
            if not key.startswith("budget")
        }
        tree = {**base.tree, "training": {**base.tree["training"], **training}}
        return merge_arm(Concrete(tree, base.origins), change, origin)

    def _climb(
        self, arms: Mapping[str, Concrete], rate: float
    ) -> dict[str, list[tuple[float, float | None]]] | None:
        """Try learning rates around `rate` for each arm: (rate, LML in nats per token or None).

        Returns:
            None if the budget is used up.
        """
        stage = self._stage("ladder", self.prepared(), FIRST_SEEDS["ladder"])
        runs = {}
        for factor in LADDER:
            for name, arm in arms.items():
                tree = at_rate(arm, factor * rate)
                key = stage.make(tree, 0, 0).run_key()
                label = f"{name}, learning rate {factor * rate:.3g}"
                runs[name, factor * rate] = PlannedRun(label, key, 0, tree.tree)
        self._ladder_runs = len(runs)
        if not self.drive(replace(stage, runs=tuple(runs.values()))):
            return None
        scores = {
            trial.spec.run_key(): trial.nats_per_token if trial.finished else None
            for trial in self.run.storage.trials("ladder")
            if trial.spec is not None
        }
        return {
            name: [(each, scores.get(runs[n, each].key)) for n, each in runs if n == name]
            for name in arms
        }

    def _base_params(self) -> Mapping[str, Any]:
        """Parameters of the recommended trial; the spec's first values if it has no search."""
        if trials := self.run.storage.trials("search"):
            return recommended(self.run.choice().selection, trials).params
        dimensions = self.file.dimensions
        name = next((n for n in dimensions if not n.startswith("policy")), None)
        if name is not None:
            raise InputError(
                f"{self.file.origin_of(name)}: {name}: is a dimension, but there is no search to "
                "take its value from; fix it, or run `mptune search` first"
            )
        return {n: d.labels[0] if hasattr(d, "labels") else d.low for n, d in dimensions.items()}

    def measure_kpi(self) -> None:
        """Call the user's own function on the finished trials, if the spec names one.

        Raises:
            InterruptedSearch: stopped on request.
        """
        if self.spec.score.kpi is not None:
            trials = self.run.storage.trials("search")
            directory, score = self.run.directory, self.spec.score
            with interrupts(self.interrupted):
                kpi.measure_all(directory, score, trials, self.say, self.interrupted)
