"""One run directory, from its spec to its report: what `search` and `compare` share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from rich.console import Console

from mptune import dispatch, status, study
from mptune.analysis.comparison import undecided_arms
from mptune.analysis.results import Report
from mptune.analysis.sequential import schedule
from mptune.artifacts import Remote
from mptune.dispatch.base import Dispatcher
from mptune.errors import InputError
from mptune.live.table import LiveView
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory, write_text
from mptune.search import budgets as _budgets
from mptune.search import cluster as _cluster
from mptune.search import kpi as _kpi
from mptune.search.evidence import Asked, Scores, collect, finalists, recommended
from mptune.search.forecast import Predictor, Work
from mptune.spec.schema import Comparison, Score, SearchSpec, build
from mptune.spec.source import Concrete, SpecFile, merge_arm, plain
from mptune.spec.space import Space
from mptune.status import StageEnd, Status
from mptune.study.lease import Lease, Unneeded, held
from mptune.tools.prepare import prepare_table
from mptune.trial import Prepared, PrepareRequest, StageName, Trial, TrialSpec

FRESH_PLAN = 1_000_003
"""Added to the score's seed: sequences, counts and masks of a confirmation are drawn anew."""


@dataclass
class Session:
    """Everything that one invocation of `mptune search` or `mptune compare` works with."""

    file: SpecFile
    spec: SearchSpec
    run: RunDirectory
    console: Console
    command: str
    searching: bool = True
    """Whether the search's budgets hold: for its confirmation and comparison, too."""
    local: bool = False
    address: str | None = None
    _dispatcher: Dispatcher | None = field(default=None, init=False)
    _predictor: Predictor = field(default_factory=Predictor, init=False)
    _lease: Lease = field(default_factory=Unneeded, init=False)
    _stages: dict[StageName, StageEnd] = field(default_factory=dict, init=False)

    @property
    def url(self) -> str | None:
        return self.spec.storage.url

    @contextmanager
    def open(self, *, fresh: bool, yes: bool) -> Iterator[None]:
        """Hold the run directory, with the spec written into it; workers are gone afterwards.

        Raises:
            InputError: another driver holds it, or `fresh` would delete without `yes`.
        """
        storage = self.spec.storage
        lease = held(storage.url, self.spec.name, storage.lease_timeout_s)
        with study.driver_lock(self.run), lease as self._lease:
            if fresh:
                self._clear(yes)
            self._write_spec()
            left = status.read(self.run)
            self._stages = left.stages() if left else {}
            try:
                yield
            finally:
                if self._dispatcher is not None:
                    self._dispatcher.close()

    def _clear(self, yes: bool) -> None:
        names = study.names(self.spec.name)
        held = sum(len(study.records(self.run, self.url, n)) for n in names)
        if held and not yes:
            raise InputError(
                f"{self.run.root} holds {held} trials; --fresh deletes them, add --yes to do so"
            )
        study.delete_studies(self.run, self.url, names)
        if self._artifacts is not None:
            Remote(self._artifacts).remove()
        for entry in self.run.root.iterdir():
            if entry != self.run.lock:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _write_spec(self, *, accepted: bool = False) -> None:
        """The spec goes in first; a resume keeps the stored one until it is accepted."""
        resolved = yaml.safe_dump(self.file.resolved(self.spec), sort_keys=False)
        if accepted or not self.run.resolved.exists():
            write_text(self.run.spec, self.file.text)
            write_text(self.run.resolved, resolved)

    def dispatcher(self) -> Dispatcher:
        """Started when first needed: a finished search is reported without Ray."""
        if self._dispatcher is None:
            self._dispatcher = dispatch.make(
                self.spec.resources,
                local=self.local,
                address=self.address,
                forecast=self._predictor,
                mark=_cluster.mark(self.run),
            )
            if at := self._dispatcher.address():
                _cluster.remember(self.run, at)
        return self._dispatcher

    # --- preparing -----------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """The data section with its paths absolute.

        The copy of a spec in a run directory is not where its relative paths lead from.
        """
        if self.file.path == self.run.resolved and (stored := self._stored_data()):
            return stored
        modality = build("data", self.spec.data).resolved(self.file.path.absolute().parent)
        found: dict[str, Any] = modality.model_dump(mode="json")
        return found

    def _stored_data(self) -> dict[str, Any] | None:
        for name in study.names(self.spec.name):
            for record in study.records(self.run, self.url, name):
                if record.spec is not None:
                    return record.spec.data
        return None

    def prepared(self) -> Prepared:
        """The token table and the frozen plan, prepared once per run directory."""
        return self._prepared(self.run.prepared, self.run.plan, self.spec.score)

    def _prepared(self, said: Path, plan: Path, score: Score) -> Prepared:
        """What preparing said, from its file if that still holds."""
        if (known := _said(said)) and Path(known.table).is_dir() and Path(known.plan).is_file():
            return known
        request = PrepareRequest(
            data=self.data(),
            score=score,
            cache=str(cache_directory() / "tables"),
            plan=str(plan.absolute()),
            measure_precision=said == self.run.prepared and self._has_auto_precision(),
        )
        if self.address is None:
            self.dispatcher().warm_up()
            self._prepare_here(Path(request.cache))
        prepared = self.dispatcher().prepare(request)
        if said != self.run.prepared:
            # Measured again it might be another one.
            prepared = prepared.model_copy(update={"precision": self.prepared().precision})
        write_text(said, prepared.model_dump_json(indent=2) + "\n")
        return prepared

    def _has_auto_precision(self) -> bool:
        sections = (probe.tree.get("training", {}) for probe in self.file.probes())
        return any(section.get("precision") == "auto" for section in sections)

    def _prepare_here(self, cache: Path) -> None:
        """Make the table while the workers start, with its progress on the user's terminal.

        Raises:
            InputError: the data are missing or broken; one line names the place.
        """
        try:
            prepare_table(self.data(), cache)
        except InputError as error:
            raise InputError(f"{self.file.origin_of('data')}: {error}") from None

    # --- searching -----------------------------------------------------------------------------

    def search(self) -> None:
        """Run the search to its number of trials.

        Raises:
            InterruptedSearch, NoResultError, InputError: see `StudyDriver.run` and `claim_spec`.
        """
        pruner = study.make_pruner(self.spec.search.pruner)
        opened = study.open_study(self.run, self.url, self.spec.name, pruner=pruner)
        study.claim_spec(opened, self.file.resolved(self.spec))
        self._write_spec(accepted=True)
        study.enqueue_arms(opened, Space(self.file).arms())
        if study.ended(opened) >= self.spec.search.trials:
            return
        rungs = self.spec.search.pruner.rungs if self.spec.search.pruner.kind != "none" else ()
        factory = self._factory(self.spec.name, "search", rungs)
        space, seed = Space(self.file), self.spec.search.seed

        def propose(trial: optuna.Trial) -> TrialSpec:
            return factory.make(space.suggest(trial), trial.number, seed)

        self._drive(opened, self.spec.search.trials, propose, "search")

    def _factory(self, name: str, folder: str, rungs: tuple[float, ...]) -> study.TrialFactory:
        return study.TrialFactory(
            name, folder, self.run, self.prepared(), self.data(), rungs, self._artifacts
        )

    @property
    def _artifacts(self) -> str | None:
        """Of this search, as its name is in a storage that searches share."""
        root = self.spec.storage.artifacts
        return None if root is None else f"{root.rstrip('/')}/{self.spec.name}"

    def _drive(
        self,
        opened: optuna.Study,
        trials: int,
        propose: Callable[[optuna.Trial], TrialSpec],
        what: StageName,
    ) -> bool:
        """Whether all trials have ended, and no budget ended it before."""
        search, budget = self.spec.search, self._budget(what)
        spent_s, ledger = study.load_spend(opened)
        if spent := budget.reached(Work(ledger.worker_s, ledger.gpu_s), spent_s):
            return self._say_short(what, spent, study.ended(opened), trials)
        title = f"{self.spec.name}: {what}"
        with LiveView(self.console, title, trials, done=study.ended(opened)) as live:
            driver = study.StudyDriver(
                study=opened,
                trials=trials,
                propose=propose,
                dispatcher=self.dispatcher(),
                observer=live,
                sampler=lambda number: study.make_sampler(search, number),
                concurrency=search.concurrency,
                ordered=search.ordered,
                budget=budget,
                log=self.run.events,
                predictor=self._predictor,
                lease=self._lease,
                watchers=(live.look, self._write_status, self.dispatcher().publish),
                preflight=partial(memory.refusal, holds=self.dispatcher().device),
            )
            driver.run()
        if driver.stopped_by is None:
            return True
        return self._say_short(what, driver.stopped_by, study.ended(opened), trials)

    def _say_short(self, what: StageName, spent: str, ended: int, trials: int) -> bool:
        self.console.print(
            f"note: {what}: {ended} of {trials} trials have ended, {spent}; with a larger budget, "
            "which search, confirmation and comparison share, the same command goes on",
            soft_wrap=True, markup=False,
        )  # fmt: skip
        return False

    def _write_status(self, now: Status) -> None:
        """A search does not fail because there is no room to say where it stands."""
        known = {**self._stages, **now.stages()}
        self._stages = known
        earlier = {stage: end for stage, end in known.items() if stage != now.stage}
        with suppress(OSError):
            status.write(self.run, now.model_copy(update={"earlier": earlier}))

    def _budget(self, what: StageName) -> study.Budget:
        """This stage's share; none holds for a comparison that is asked for by itself."""
        if not self.searching:
            return study.Budget()
        names = zip(_budgets.STAGES, study.names(self.spec.name), strict=True)
        used = {stage: study.used(self.run, self.url, name) for stage, name in names}
        return _budgets.share(self.spec, what, used)

    # --- confirming ----------------------------------------------------------------------------

    def confirm(self) -> None:
        """Train the best trials anew, seed by seed, and score them on a plan of its own."""
        wanted, name = self.spec.search.confirm, study.confirm_name(self.spec.name)
        by_worst = self.spec.search.choose_by == "worst_domain"
        searched = study.records(self.run, self.url, self.spec.name)
        top = finalists(searched, wanted.top, by_worst)
        if len(top) < 2:
            return
        pruner = optuna.pruners.NopPruner()
        opened = study.open_study(self.run, self.url, name, pruner=pruner)
        score = self.spec.score.model_copy(update={"seed": self.spec.score.seed + FRESH_PLAN})
        plan = self._prepared(self.run.confirm_prepared, self.run.confirm_plan, score)
        factory = study.TrialFactory(
            name, "confirm", self.run, plan, self.data(), artifacts=self._artifacts
        )
        arms = {f"trial {record.number}": self._scored_anew(record, score) for record in top}
        keys = {arm: study.run_key(factory.make(at, 0, 0)) for arm, at in arms.items()}
        runs = [
            study.Run(arm, keys[arm], seed, arms[arm].tree)
            for seed in range(wanted.seeds)
            for arm in arms
        ]
        total = study.enqueue_runs(opened, runs)
        if study.ended(opened) < total:
            propose = _proposer(factory, study.CONFIRM_SEED)
            self._drive(opened, total, propose, "confirmation")

    def _scored_anew(self, record: Trial, score: Score) -> Concrete:
        found = Space(self.file).at(record.params)
        return Concrete({**found.tree, "score": score.model_dump(mode="json")}, found.origins)

    # --- comparing -----------------------------------------------------------------------------

    def compare(self) -> None:
        """Run the spec's comparison: every arm on every paired seed, and more until decided.

        Raises:
            InputError: the spec has no `compare`, or a dimension is left open.
        """
        comparison = self.spec.compare
        if comparison is None:
            raise InputError(f"{self.file.path}: compare: is missing; name at least two arms there")
        name = study.compare_name(self.spec.name)
        pruner = optuna.pruners.NopPruner()
        opened = study.open_study(self.run, self.url, name, pruner=pruner)
        arms = self._arms(opened, comparison)
        rungs = (*comparison.rungs, 1.0) if comparison.rungs else ()
        factory = self._factory(name, "compare", rungs)
        keys = _run_keys(arms, factory)
        asked = Asked(comparison, keys)
        study.ask_comparison(opened, asked.as_json())

        propose = _proposer(factory, study.COMPARE_SEED, arms)
        wanted: list[study.Run] = []
        names, seeds = list(arms), 0
        for look in schedule(comparison.seeds, comparison.max_seeds):
            wanted += [
                study.Run(arm, keys[arm], seed, arms[arm].tree)
                for seed in range(seeds, look)  # seed by seed: paired, even when interrupted
                for arm in names
            ]
            seeds, runs = look, study.enqueue_runs(opened, wanted)
            if study.ended(opened) < runs and not self._drive(opened, runs, propose, "comparison"):
                return
            names = self._undecided(asked, name, wanted)
            if not names:
                return

    def _undecided(self, asked: Asked, name: str, ran: Sequence[study.Run]) -> list[str]:
        """Arms that need more seeds, the baseline among them; none if all is decided."""
        kept = {(run.key, run.seed) for run in ran}
        found = study.records(self.run, self.url, name)
        seen = [r for r in found if r.spec and (study.run_key(r.spec), r.params["seed"]) in kept]
        return undecided_arms(asked, seen, self.prepared(), Scores(self.run))

    def _arms(self, opened: optuna.Study, comparison: Comparison) -> dict[str, Concrete]:
        """Each arm's spec: the base with the arm's changes. The base never moves once chosen."""
        base = Space(self.file).at(self._base_params(opened, comparison))
        nodes = self.file.arms("compare")
        return {n: merge_arm(base, plain(nodes[n]), nodes[n].origin) for n in comparison.arms}

    def _base_params(self, opened: optuna.Study, comparison: Comparison) -> Mapping[str, Any]:
        stored: Mapping[str, Any] | None = opened.user_attrs.get("base")
        if stored is not None:
            return stored
        params = self._best_params()
        study.set_base(opened, params)
        return params

    def _best_params(self) -> Mapping[str, Any]:
        """Parameters of the recommended trial; the spec's first values if it has no search."""
        if study.records(self.run, self.url, self.spec.name):
            return recommended(self.run, self.spec).params
        return self._first_values()

    def _first_values(self) -> Mapping[str, Any]:
        open_names = [n for n in self.file.dimensions if not n.startswith("policy")]
        if open_names:
            name = open_names[0]
            raise InputError(
                f"{self.file.origin_of(name)}: {name}: is a dimension, but there is no search to "
                "take its value from; fix it, or run `mptune search` first"
            )
        return {
            n: d.labels[0] if hasattr(d, "labels") else d.low
            for n, d in self.file.dimensions.items()
        }

    def measure_kpi(self) -> None:
        """The user's own function on the finished trials of the search, if the spec names one."""
        if self.spec.score.kpi is None:
            return
        found = study.records(self.run, self.url, self.spec.name)
        say = partial(self.console.print, soft_wrap=True, markup=False)
        _kpi.measure_all(self.run, self.spec.score, found, say)

    # --- reporting -----------------------------------------------------------------------------

    def evidence(self) -> Report:
        """What the report is made from."""
        return collect(self.run, self.spec, self.command)


def _said(file: Path) -> Prepared | None:
    """What preparing said; None if it has not been done or the file is damaged."""
    try:
        return Prepared.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _proposer(
    factory: study.TrialFactory, first_seed: int, arms: Mapping[str, Concrete] | None = None
) -> Callable[[optuna.Trial], TrialSpec]:
    """Turns a queued run into its trial; `arms` serve runs that were queued without their tree."""

    def propose(trial: optuna.Trial) -> TrialSpec:
        tree = trial.user_attrs.get("tree") or (arms or {})[trial.user_attrs["arm"]].tree
        seed = trial.suggest_int("seed", 0, 10_000)
        return factory.make(Concrete(tree, {}), trial.number, first_seed + seed)

    return propose


def _run_keys(arms: Mapping[str, Concrete], factory: study.TrialFactory) -> dict[str, str]:
    """What each arm runs, apart from seeds.

    Raises:
        InputError: two arms run the same.
    """
    keys: dict[str, str] = {}
    for name, concrete in arms.items():
        key = study.run_key(factory.make(concrete, 0, 0))
        twin = next((other for other, known in keys.items() if known == key), None)
        if twin is not None:
            raise InputError(f"compare.arms: {twin!r} and {name!r} are the same; leave one out")
        keys[name] = key
    return keys
