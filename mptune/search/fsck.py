"""What does not fit between a run directory, its storage and its cluster, and how to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mptune import dispatch, study
from mptune.errors import DispatchError
from mptune.paths import RunDirectory, TrialDirectory, write_text
from mptune.search import cluster as _cluster
from mptune.spec.schema import SearchSpec
from mptune.trial import Prepared, Trial, TrialResult, TrialSpec

ENDED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; without `repair` only the user can do something about it."""

    where: str
    problem: str
    action: str
    repair: Callable[[], object] | None = None


def findings(
    run: RunDirectory, spec: SearchSpec, driven: bool, address: str | None = None
) -> list[Finding]:
    """Everything that is wrong, in the order in which it is to be repaired.

    Raises:
        DispatchError: the cluster at `address` cannot be reached.
    """
    url = spec.storage.url
    found = list(_top(run))
    if not driven:
        found += _leftovers(run, address)
    folders = ("search", "confirm", "compare")
    for name, folder in zip(study.names(spec.name), folders, strict=True):
        records = study.records(run, url, name)
        running = [r.number for r in records if r.state == "RUNNING"]
        if running and not driven:
            what = f"trials {', '.join(map(str, running))} run without a driver"
            repair = partial(study.requeue, run, url, name)
            found.append(Finding(name, what, "queue them again, from their checkpoints", repair))
        for record in records:
            found += _trial(run.trial(record.number, folder), record, driven)
        found += _strangers(run, folder, {r.number for r in records})
    return found


def _top(run: RunDirectory) -> Iterator[Finding]:
    if run.prepared.exists():
        try:
            made = Prepared.model_validate_json(run.prepared.read_text(encoding="utf-8"))
            if not Path(made.table).is_dir():
                yield Finding(made.table, "the token table is gone", "search again: it is remade")
        except ValueError:
            yield _away(run, run.prepared, "cannot be read")
    for file in [*run.root.glob(".*.*"), *run.root.glob("*/*/.*.*")]:
        if file.is_file():
            yield Finding(str(file), "half written", "delete it", partial(file.unlink, True))
    if run.events.exists() and not run.events.read_bytes().endswith(b"\n"):
        whole = run.events.read_bytes().rpartition(b"\n")
        text = (whole[0] + whole[1]).decode(errors="replace")
        repair = partial(write_text, run.events, text)
        yield Finding(str(run.events), "its last line is cut off", "drop that line", repair)


def _leftovers(run: RunDirectory, address: str | None) -> Iterator[Finding]:
    """What a dead driver has left on its cluster."""
    for where, mark in _cluster.places(run, address):
        try:
            left = dispatch.find_orphans(where, mark)
        except DispatchError as error:
            if address is not None:
                raise
            again = "name it by --address, if it is still there"
            yield Finding(f"the Ray cluster at {where}", f"not looked at: {error}", again)
            continue
        for one in left:
            repair = partial(dispatch.remove_orphans, where, mark, [one.id])
            yield Finding(f"the Ray cluster at {where}", one.problem, one.action, repair)


def _trial(files: TrialDirectory, record: Trial, driven: bool) -> Iterator[Finding]:
    where, known = files.root, record.spec
    if record.state in ENDED and known and not _reads(files.spec, TrialSpec):
        repair = partial(write_text, files.spec, known.model_dump_json(indent=2) + "\n")
        yield Finding(str(files.spec), "missing or damaged", "write it from the storage", repair)
    if record.state == "COMPLETE":
        yield from _complete(files, record)
    if not driven and files.checkpoint.exists():
        if record.state in ENDED:
            repair = partial(shutil.rmtree, files.checkpoint)
            yield Finding(str(where), f"{record.state}, but has a checkpoint", "delete it", repair)
        elif not _good_checkpoint(files):
            repair = partial(shutil.rmtree, files.checkpoint)
            what = "its checkpoint is damaged"
            yield Finding(str(where), what, "delete it; the trial begins anew", repair)


def _complete(files: TrialDirectory, record: Trial) -> Iterator[Finding]:
    if record.result is None:
        yield Finding(str(files.root), "COMPLETE without a result", "search with --fresh")
        return
    if not _reads(files.result, TrialResult):
        repair = partial(write_text, files.result, record.result.model_dump_json(indent=2) + "\n")
        yield Finding(str(files.result), "missing or damaged", "write it from the storage", repair)
    try:
        with np.load(files.scores) as stored:
            stored["nats_per_sequence"]
    except Exception:  # a broken zip file raises what it likes
        again = f"python -m mptune.worker {files.spec} --out {files.root}"
        yield Finding(str(files.scores), "missing or damaged", again)


def _strangers(run: RunDirectory, folder: str, known: set[int]) -> Iterator[Finding]:
    parent = run.trial(0, folder).root.parent
    for entry in sorted(parent.glob("[0-9]*")):
        if not (entry.name.isdigit() and int(entry.name) in known):
            yield _away(run, entry, "the storage knows no such trial")


def _away(run: RunDirectory, path: Path, problem: str) -> Finding:
    """Out of the way, not deleted."""
    target = run.root / "lost+found" / f"{path.parent.name}-{path.name}"

    def move() -> None:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)

    return Finding(str(path), problem, "move it to lost+found", move)


def _reads(path: Path, kind: type[TrialSpec] | type[TrialResult]) -> bool:
    try:
        kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _good_checkpoint(files: TrialDirectory) -> bool:
    try:
        marker = json.loads((files.checkpoint / "latest.json").read_text(encoding="utf-8"))
        return (files.checkpoint / str(marker["tag"])).is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return False
