"""A run: one run directory with its spec and its studies, to read, report, stop and export."""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import yaml
from numpy.typing import NDArray

from mptune import __version__, status
from mptune.analysis.comparison import Asked
from mptune.analysis.explanation import Explanation, ending_words, explain
from mptune.analysis.intervals import by_group, group_correlations
from mptune.analysis.ranking import ranking
from mptune.analysis.results import Recommendation, Report, StudyTrials, build_report, choose
from mptune.errors import InputError, NoResultError, did_you_mean
from mptune.paths import RunDirectory, TrialDirectory, check_is_file, read_model, write_text
from mptune.search import kpi
from mptune.search.budget import planned_runs
from mptune.search.in_flight import resumed_at
from mptune.search.ledger import Work, load_spend
from mptune.spec.schema import SearchSpec, Storage
from mptune.spec.source import SpecFile
from mptune.status import Outlook, Spend, StageEnd, Trials
from mptune.study.history import History
from mptune.study.lease import driver_of, is_driven
from mptune.study.records import importances
from mptune.study.storage import SUFFIXES, StudyStorage
from mptune.trial import Prepared, StageName, Trial

if TYPE_CHECKING:
    import optuna
    import pandas as pd

STOP_TIMEOUT_S = 180.0

DRIVEN_HERE: dict[Path, threading.Event] = {}
"""Run directory -> event that stops its driver, for the runs driven by this process."""


OUTLOOK = "outlook"
"""User attribute of the search's study: its last `Outlook`."""

PACKAGES = ("torch", "deepspeed", "ray", "optuna", "transformers", "numpy")


class TrialList(list[Trial]):
    """The trials of a stage, in order of number."""

    def best(self) -> Trial:
        """The finished trial with the highest LML; of equal ones, the first.

        Raises:
            NoResultError: no trial has finished.
        """
        finished = [trial for trial in self if trial.finished]
        if not finished:
            raise NoResultError("no trial has finished, so there is nothing to recommend")
        return ranking(finished)[0]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per trial: number, state, score with its standard errors, cost, and params.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame([_row(trial) for trial in self])


COLUMNS = (
    *("stage", "number", "state", "reason", "arm", "seed", "policy_label", "size_label"),
    *("parameters", "nats_per_token", "seconds"),
)
"""Fields of a trial that a table of trials has."""


def _row(trial: Trial) -> dict[str, Any]:
    row = {name.removesuffix("_label"): getattr(trial, name) for name in COLUMNS}
    if trial.result is not None:
        lml, cost = trial.result.lml, trial.result.cost
        row |= {"se_nats_per_sequence": lml.se_population, "tokens": cost.tokens}
        row |= {name: getattr(lml, name) for name in ("nats_per_sequence", "bits_per_byte")}
        row["flops"] = cost.flops
    return row | {f"params.{name}": value for name, value in trial.params.items()}


def existing_directory(path: Path | str) -> RunDirectory:
    """The run directory at `path`.

    Raises:
        InputError: it contains no run.
    """
    root = Path(path)
    directory = RunDirectory(root)
    if not directory.resolved.exists():
        beside = [p.name for p in root.parent.glob("*/")] if root.parent.is_dir() else []
        hint = did_you_mean(root.name, beside) if not root.is_dir() else ""
        raise InputError(f"{root}: no search in it (no {directory.resolved.name}){hint}")
    return directory


@dataclass(frozen=True)
class Run:
    """One run directory with its spec and storage.

    Attributes:
        directory: the files of the run.
        file: its spec with all dimensions, as written.
        spec: the same with every dimension at its first value.
    """

    directory: RunDirectory
    file: SpecFile
    spec: SearchSpec

    @classmethod
    def open(cls, path: Path | str, *, local: bool = False) -> Run:
        """The run in a directory; with `local`, its studies in the directory's own database.

        Raises:
            InputError: it contains no run, or its stored spec was edited and is invalid.
        """
        directory = existing_directory(path)
        file = SpecFile.read(directory.resolved)
        try:
            spec = SearchSpec.model_validate(next(file.probes()).tree)
        except ValueError as error:
            raise InputError(f"{directory.resolved}: {str(error).splitlines()[0]}") from None
        if local:
            spec = spec.model_copy(update={"storage": Storage()})
        return cls(directory, file, spec)

    @cached_property
    def storage(self) -> StudyStorage:
        """The studies of the run, one per stage."""
        return StudyStorage(self.directory.database, self.spec.storage.address(), self.spec.name)

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that have a study, in order of running."""
        return tuple(stage for stage in SUFFIXES if self.storage.load(stage) is not None)

    def study(self, stage: StageName = "search") -> optuna.Study:
        """The Optuna study of a stage, e.g. for `optuna.visualization`.

        Raises:
            NoResultError: the stage has not begun.
        """
        found = self.storage.load(stage)
        if found is None:
            raise NoResultError(f"{self.directory.root}: no {stage} has begun")
        return found

    def trials(self, stage: StageName = "search") -> TrialList:
        """The trials of a stage, with what `score.kpi` returned for them."""
        name, found = self.spec.score.kpi, self.storage.trials(stage)
        if name is None or stage != "search":
            return TrialList(found)
        values = [kpi.stored(self.directory, name, trial) for trial in found]
        return TrialList(
            trial.model_copy(update={"kpi": value})
            for trial, value in zip(found, values, strict=True)
        )

    def scores(self, trial: Trial) -> dict[str, NDArray[np.float64]]:
        """The arrays of a trial's scores; empty if they were not kept.

        `nats_per_sequence` [n], `rows` [n] of the held-out split and `groups` [n] on the plan, and
        `at_rungs` [rungs, m] on the plan of the rungs, whose sequences are the plan's first m.
        """
        path = self.trial_directory(trial).scores
        if not path.exists():
            return {}
        check_is_file(path)
        try:
            with np.load(path) as stored:
                return dict(stored)
        except (ValueError, BadZipFile, EOFError):
            raise NoResultError(f"{path}: damaged; see `mptune fsck`") from None

    def group_scores(self, trial: Trial) -> dict[str, NDArray[np.float64]]:
        """`scores` as analysis takes them, see `mptune.analysis.intervals.by_group`."""
        return by_group(self.scores(trial))

    def group_correlations(self, table_hash: str) -> dict[str, float]:
        """Intraclass correlations of the best trial's scores and of its difference to the second.

        See `mptune.analysis.intervals.group_correlations`; empty without scores of this table.
        """
        if self.prepared is None or self.prepared.table_hash != table_hash:
            return {}
        ranked = ranking([trial for trial in self.trials() if trial.finished])
        found = [scores for trial in ranked[:2] if (scores := self.scores(trial))]
        return group_correlations(found) if found else {}

    def trial_directory(self, trial: Trial) -> TrialDirectory:
        """The present directory of a trial; its spec has the one at the time of the run."""
        return self.directory.trial(trial.number, trial.stage)

    def weights(self, trial: Trial) -> str | None:
        """Folder or URL of the weights that transformers opens; None if they are not kept."""
        spec, result = trial.spec, trial.result
        if spec is None or result is None or not spec.training.keep_weights or result.unkept:
            return None
        files = self.trial_directory(trial)
        return str(files.weights) if spec.artifacts is None else f"{spec.artifacts}/model"

    @property
    def prepared(self) -> Prepared | None:
        """The description of the prepared data; None if they are not prepared yet."""
        return read_model(self.directory.prepared, Prepared)

    def asked(self) -> Asked | None:
        """The last comparison that was run; without one, that of the spec."""
        study = self.storage.load("comparison")
        if study is not None and "comparison" in study.user_attrs:
            return Asked.model_validate(study.user_attrs["comparison"])
        return Asked(comparison=self.spec.compare, keys={}) if self.spec.compare else None

    def best(self) -> Trial:
        """The trial of the recommended policy (`Recommendation.trial`), as in the report.

        It is a run of an arm (`trial.stage == "comparison"`) if that arm beat the search's best
        policy, or if nothing was searched.

        Raises:
            NoResultError: no trial has finished.
        """
        return self.choice().best()

    def outlook(self) -> Outlook | None:
        """How sure the search is, what ended it, what more would bring; None before it began."""
        study = self.storage.load("search")
        found = study.user_attrs.get(OUTLOOK) if study else None
        return Outlook.model_validate(found) if found else None

    def explain(self, trial: int | None = None) -> Explanation:
        """Why the search ran each trial, or one of them, and why it ended; printed, in words.

        Raises:
            NoResultError: no search has begun, or it has no such trial.
        """
        self.study()
        trials = self.trials()
        resumed = {t.number: resumed_at(self.trial_directory(t)) for t in trials}
        selection, outlook = self.choice().selection, self.outlook()
        found = explain(self.spec.name, self.spec.search, trials, selection, outlook, resumed)
        if trial is None:
            return found
        only = tuple(story for story in found.trials if story.trial.number == trial)
        if not only:
            raise NoResultError(f"{self.directory.root}: the search has no trial {trial}")
        return found.model_copy(update={"trials": only})

    def choice(self) -> Recommendation:
        """What the run recommends, and the search's selection and the comparison behind it."""
        return choose(self.spec, self._study(self.storage.trials("search")))

    def _study(self, searched: Sequence[Trial]) -> StudyTrials:
        return StudyTrials(
            prepared=self.prepared,
            searched=searched,
            confirmed=self.storage.trials("confirmation"),
            compared=self.storage.trials("comparison"),
            tried=self.storage.trials("ladder"),
            asked=self.asked(),
            scores=self.group_scores,
        )

    def commands(self) -> tuple[str, ...]:
        """The shell commands that resume the run from its directory.

        One is of the search, if there is one, and one of the comparison, if it is not the spec's.
        """
        again = [str(self.directory.resolved), "--run-dir", str(self.directory.root)]
        stages, asked = self.stages, self.asked()
        if "search" not in stages and "comparison" in stages:
            return (shlex.join(["mptune", "compare", *again]),)
        found = [["mptune", "search", *again]]
        if "comparison" in stages and asked is not None and asked.comparison != self.spec.compare:
            compared = asked.comparison.model_dump_json(exclude_defaults=True)
            found.append(["mptune", "compare", *again, f"--set=compare={compared}"])
        return tuple(map(shlex.join, found))

    def report(self, command: str = "", extrapolate_to: Sequence[float] | None = None) -> Report:
        """The content of the report as one value; `mptune.report.write` writes it to files.

        Args:
            command: the shell command that repeats the run, for the report; default `commands()`.
            extrapolate_to: parameter counts for the laws over size; default the spec's.
        """
        return build_report(
            self.spec,
            self._study(self.trials()),
            extrapolate_to=extrapolate_to,
            importances=importances(study) if (study := self.storage.load("search")) else {},
            outlook=self.outlook(),
            wall_s=sum(self.used(stage).wall_s for stage in SUFFIXES),
            commands=(command,) if command else self.commands(),
            versions={"mptune": __version__, "python": platform.python_version()}
            | {package: version(package) for package in PACKAGES},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def export_policy(
        self, path: Path | str | None = None, trial: Trial | None = None
    ) -> dict[str, Any]:
        """The policy of a trial as in a spec, written to `path` as YAML if one is given.

        Args:
            trial: whose policy; default the recommended one.

        Raises:
            NoResultError: no trial has finished.
        """
        best = trial or self.best()
        learned = best.result.learned_policy if best.result else None
        policy = learned or best.policy
        if path is not None:
            of = f"trial {best.number}" if best.stage == "search" else f"arm {best.arm}"
            head = f"# {best.label}: {of} of {self.spec.name}, by accumulated LML estimate\n"
            write_text(Path(path), head + yaml.safe_dump(policy, sort_keys=False))
        return policy

    def used(self, stage: StageName) -> Work:
        """Work of a stage, over all resumes."""
        study = self.storage.load(stage)
        if study is None:
            return Work()
        wall_s, ledger = load_spend(study)
        return replace(ledger.ended, wall_s=wall_s)

    # --- while it runs -------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a running driver has locked the run directory."""
        return is_driven(self.directory)

    def status(self) -> dict[str, Any]:
        """The state of the run, as `mptune status --json` prints it; see docs/monitoring.md.

        While a driver runs, its last status is used and the storage is not read.
        """
        running, now = self.is_running, status.read(self.directory)
        stale = now is not None and (not running or now.age_s(time.time()) > status.STALE_S)
        stages = now.stages() if now is not None and not stale else {}
        if "search" not in stages:
            stages = {stage: self._stored(stage) for stage in self.stages} | stages
        # Stages to come are shown with their plan; one before a stage that has begun was left out.
        begun = [place for place, stage in enumerate(SUFFIXES) if stage in stages]
        coming = list(planned_runs(self.spec).items())[max(begun, default=-1) + 1 :]
        trials = {stage: Trials(total=n) for stage, n in coming if n}
        trials |= {stage: end.trials for stage, end in stages.items()}
        spend = [end.spend for end in stages.values()]
        outlook = now.outlook if now and now.outlook and not stale else self.outlook()
        return {
            "name": self.spec.name,
            "running": running,
            **{s: trials[s].counts() if s in trials else None for s in SUFFIXES},
            "best": stages["search"].best if "search" in stages else None,
            "outlook": outlook.model_dump(mode="json") if outlook else None,
            "end": list(ending_words(outlook)) if outlook else [],
            "spent": {
                "worker_seconds": round(sum(each.worker_seconds for each in spend), 1),
                "gpu_hours": round(sum(each.gpu_hours for each in spend), 4),
            },
            "stale": stale,
            "now": None if now is None else now.model_dump(mode="json"),
        }

    def _stored(self, stage: StageName) -> StageEnd:
        """The status of a stage as its storage has it."""
        used, study = self.used(stage), self.storage.load(stage)
        history = History.of(study) if study else History()
        # All runs of the other stages are queued when they begin, and more if an arm is undecided.
        total = self.spec.search.trials if stage == "search" else history.asked
        return StageEnd(
            trials=history.trials(total),
            best=history.best,
            spend=Spend(
                seconds=used.wall_s, worker_seconds=used.worker_s, gpu_hours=used.gpu_hours
            ),
        )

    def stop(self, now: bool = False, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the driver; see `stop_driver`."""
        return stop_driver(self.directory, now, timeout_s)


def stop_driver(
    directory: RunDirectory, now: bool = False, timeout_s: float = STOP_TIMEOUT_S
) -> bool:
    """Stop the driver if it runs on this machine; the run can be resumed.

    Args:
        now: do not wait for checkpoints; trials resume from their last one. A driver in this
            process always writes them.

    Returns:
        Whether there was a driver to stop.

    Raises:
        InputError: the driver runs on another machine.
        NoResultError: it did not stop within `timeout_s`.
    """
    if not is_driven(directory):
        return False
    driver = driver_of(directory)
    match = re.match(r"process (\d+) on (\S+)", driver)
    if match is None:
        raise InputError(f"{directory.driver}: names no process that drives the run")
    if match[2] != socket.gethostname():
        raise InputError(f"{directory.root} is being searched by {driver}; stop it there")
    pid = int(match[1])
    if pid == os.getpid():
        here = DRIVEN_HERE.get(directory.root.resolve())
        if here is not None:
            here.set()
    else:
        # A driver that ends meanwhile has stopped, too.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if now:
                # Any second signal ends the driver at once; two of one kind may arrive as one.
                os.kill(pid, signal.SIGINT)
    give_up = time.monotonic() + timeout_s
    while is_driven(directory):
        if time.monotonic() > give_up:
            raise NoResultError(f"process {pid} did not stop in {timeout_s:.0f} s; try --now")
        time.sleep(0.2)
    return True
