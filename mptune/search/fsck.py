"""Checks that a run directory, its storage and its cluster agree, and repairs differences."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mptune import dispatch
from mptune.errors import DispatchError
from mptune.paths import (
    TEMPORARY,
    RunDirectory,
    TrialDirectory,
    check_is_file,
    drop_half_line,
    read_json,
    read_model,
    write_text,
)
from mptune.search.run import Run
from mptune.study.lease import driver_lock, lease
from mptune.study.queue import requeue_running
from mptune.study.records import PAUSED
from mptune.study.storage import SUFFIXES
from mptune.trial import Message, Prepared, Trial

ENDED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True)
class Finding:
    """One problem. Without `repair`, the user has to take the action."""

    where: str
    problem: str
    action: str
    repair: Callable[[], object] | None = None


def check(run: Run, repair: bool, address: str | None = None) -> list[Finding]:
    """Find the problems of a run; with `repair`, make every repair that is possible.

    Raises:
        InputError: `repair`, while a driver holds the run.
        DispatchError: the cluster at `address` cannot be reached.
    """
    storage = run.spec.storage
    with ExitStack() as held:
        if repair:
            held.enter_context(driver_lock(run.directory))
            held.enter_context(lease(storage.address(), run.spec.name, storage.lease_timeout_s))
        found = findings(run, not repair and run.is_running, held, address)
        for one in found:
            if repair and one.repair is not None:
                one.repair()
    return found


def findings(run: Run, driven: bool, held: ExitStack, address: str | None = None) -> list[Finding]:
    """All problems of a run, in the order of repair.

    Args:
        driven: whether a driver runs; its files and gangs are then not checked.
        held: gets the connection to the cluster, which some repairs need.
        address: the Ray cluster to check; default the last one.

    Raises:
        DispatchError: the cluster at `address` cannot be reached.
    """
    found = list(_top(run.directory))
    if not driven:
        found += _leftovers(run.directory, address, held)
    is_over = True
    for stage in SUFFIXES:
        trials = run.storage.trials(stage)
        is_over &= all(trial.state in ENDED for trial in trials)
        running = [t.number for t in trials if t.state == "RUNNING"]
        if running and not driven:
            problem = f"trials {', '.join(map(str, running))} run without a driver"
            action = "queue them again, from their checkpoints"
            repair = partial(requeue_running, run.study(stage))
            found.append(Finding(run.storage.study_name(stage), problem, action, repair))
        for trial in trials:
            found += _trial(run.trial_directory(trial), trial, driven)
        known = {str(run.trial_directory(trial).root) for trial in trials}
        for entry in sorted(run.directory.trial(0, stage).root.parent.glob("[0-9]*")):
            if str(entry) not in known:
                found.append(_move_away(run.directory, entry, "the storage has no such trial"))
    if not driven and is_over and (forks := run.directory.forks).exists():
        problem = "shared checkpoints of a comparison that has ended"
        found.append(Finding(str(forks), problem, "delete them", partial(shutil.rmtree, forks)))
    return found


def _top(run: RunDirectory) -> Iterator[Finding]:
    made = read_model(run.prepared, Prepared)
    if made is None and run.prepared.exists():
        yield _move_away(run, run.prepared, "cannot be read")
    if made is not None and not Path(made.table).is_dir():
        yield Finding(made.table, "the token table is missing", "search again to make it again")
    for file in [*run.root.glob(".*.*"), *run.root.glob("*/*/.*.*")]:
        if file.is_file() and TEMPORARY.fullmatch(file.name):
            yield Finding(
                str(file), "left by an interrupted write", "delete it", partial(file.unlink, True)
            )
    check_is_file(run.events)
    if run.events.exists() and not run.events.read_bytes().endswith(b"\n"):
        repair = partial(drop_half_line, run.events)
        yield Finding(str(run.events), "its last line is cut off", "drop that line", repair)


def _leftovers(run: RunDirectory, address: str | None, held: ExitStack) -> Iterator[Finding]:
    """Gangs and machine requests on the cluster whose driver has ended."""
    at, mark = address or dispatch.last_cluster(run), dispatch.gang_prefix(run)
    if at is None:
        return
    where = f"the Ray cluster at {at}"
    try:
        for left in held.enter_context(dispatch.orphans(at, mark)):
            yield Finding(where, left.problem, left.action, left.remove)
    except DispatchError as error:
        if address is not None:
            raise
        yield Finding(where, f"not checked: {error}", "give --address if it still exists")


def _trial(files: TrialDirectory, record: Trial, driven: bool) -> Iterator[Finding]:
    where, ended, result = str(files.root), record.state in ENDED, record.result
    if ended and record.spec:
        yield from _unreadable(files.spec, record.spec)
    if record.state == "COMPLETE" and result is None:
        yield Finding(where, "COMPLETE without a result", "search with --fresh")
    elif record.state == "COMPLETE" and result is not None:
        yield from _unreadable(files.result, result)
        try:
            check_is_file(files.scores)
            with np.load(files.scores) as stored:
                stored["nats_per_sequence"]
        except Exception:  # a broken zip file raises many kinds of errors
            again = f"python -m mptune.worker {files.spec} --out {files.root}"
            yield Finding(str(files.scores), "missing or damaged", again)
    if not driven and files.checkpoint.exists():
        repair = partial(shutil.rmtree, files.checkpoint)
        if ended and record.reason != PAUSED:
            yield Finding(where, f"{record.state}, but has a checkpoint", "delete it", repair)
        elif not _has_checkpoint(files):
            action = "delete it; the trial starts over"
            yield Finding(where, "its checkpoint is damaged", action, repair)


def _unreadable(file: Path, kept: Message) -> Iterator[Finding]:
    """A finding if the file, which should hold the same as the storage, cannot be read."""
    if read_model(file, type(kept)) is None:
        repair = partial(write_text, file, kept.model_dump_json(indent=2) + "\n")
        yield Finding(str(file), "missing or damaged", "write it from the storage", repair)


def _move_away(run: RunDirectory, path: Path, problem: str) -> Finding:
    """A finding whose repair moves the file to lost+found."""
    target = run.root / "lost+found" / f"{path.parent.name}-{path.name}"

    def move() -> None:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)

    return Finding(str(path), problem, "move it to lost+found", move)


def _has_checkpoint(files: TrialDirectory) -> bool:
    try:
        return (files.checkpoint / str(read_json(files.checkpoint_marker)["tag"])).is_dir()
    except (KeyError, TypeError):
        return False
