"""Checkpoints of one running trial: complete or absent, verified, and a good one at any time.

    latest.json      names the good tags, newest first, and their files; written last
    step00000120/    DeepSpeed's files, those of each rank written by that rank

A training goes on from the newest tag whose files are as they were written; on another number of
workers through DeepSpeed's universal format (Lian et al. 2024, arXiv 2406.18820).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mptune.artifacts import Store, sha256, store_at
from mptune.errors import DamagedCheckpoint, cut_line, is_disk_full, plural
from mptune.policies.base import MaskPolicy
from mptune.training import engine as ds
from mptune.training.deepspeed_private import to_universal
from mptune.training.ranks import AgreedFailure, Ranks
from mptune.training.schedule import Spent
from mptune.trial import TrialSpec

MARKER = "latest.json"
UNIVERSAL = "universal"


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A checkpoint that was written completely.

    Attributes:
        tag: its folder.
        fingerprint: of the training, see `TrialSpec.course`.
        world_size: ranks that wrote it.
        files: bytes and SHA-256 of each file, by its name under the root.
    """

    tag: str
    fingerprint: str
    world_size: int
    files: Mapping[str, tuple[int, str]]


class Checkpoints:
    """The checkpoints in `store` of the training that `fingerprint` names.

    `find` looks for one before the engine is made, because the engine depends on it. Call every
    method on every rank.
    """

    def __init__(self, store: Store, fingerprint: str, ranks: Ranks) -> None:
        self.store, self.fingerprint, self.ranks = store, fingerprint, ranks
        self._newest: WrittenCheckpoint | None = None
        self._found: tuple[Path, str] | None = None
        """Local folder and tag that `load` loads."""
        self._fetched = ExitStack()

    def save(self, engine: Any, spent: Spent) -> None:
        """Write a new tag on all ranks, then let the marker name it.

        The newest one so far is kept as a fallback, in case that the new one gets damaged.

        Raises:
            OSError: the disk is full.
            AgreedFailure: a rank could not put its files into the store.
        """
        tag, before = f"step{spent.steps:08d}", self._newest
        if self.ranks.first:
            for name in self.store.children():
                if name.startswith("step") and (before is None or name != before.tag):
                    self.store.remove(name)
        with self.store.staged() as folder:
            try:
                # Returns when every rank has written; DeepSpeed's `latest` file is not atomic.
                engine.save_checkpoint(
                    str(folder), tag=tag, client_state={"spent": spent.as_json()}, save_latest=False
                )
            except Exception as error:
                # torch does not say why it could not write. Half a checkpoint takes space.
                full = is_disk_full(error) or _is_full(folder)
                shutil.rmtree(folder / tag, ignore_errors=True)
                if full:
                    code = errno.ENOSPC
                    raise OSError(code, os.strerror(code), str(folder)) from error
                raise
            files = {}
            with self.ranks.failing_together():
                paths = [path for path in sorted((folder / tag).rglob("*")) if path.is_file()]
                for path in paths:
                    name = path.relative_to(folder).as_posix()
                    if owner(name) == self.ranks.rank:
                        files[name] = (path.stat().st_size, sha256(path))
                self.store.keep(folder, list(files))
            files = {n: known for each in self.ranks.gathered(files) for n, known in each.items()}
        good = WrittenCheckpoint(tag, self.fingerprint, self.ranks.world_size, files)
        with self.ranks.failing_together():
            if self.ranks.first:
                kept = None if before is None or before.tag == tag else asdict(before)
                marker = json.dumps({**asdict(good), "before": kept}, indent=2)
                self.store.write(MARKER, marker + "\n")
        self._newest = good

    def find(self) -> str | None:
        """Tag of the newest checkpoint of this training that is as it was written; or None.

        `UNIVERSAL` if it had to be converted for another number of workers.

        Raises:
            DamagedCheckpoint: there were some, and all are damaged. They are removed, so that
                another run of the trial begins from the start.
        """
        ranks = self.ranks
        named = ranks.from_first([asdict(good) for good in self._named()] if ranks.first else [])
        for good in (WrittenCheckpoint(**each) for each in named):
            # With parts of the optimizer's state in it, the number of ranks matters.
            is_sharded = any("optim_states" in name for name in good.files)
            converts = is_sharded and good.world_size != ranks.world_size
            # A conversion needs all files; else a rank needs rank 0's and its own.
            needed = [name for name in good.files if converts or owner(name) in (0, ranks.rank)]
            folder = self._fetched.enter_context(self.store.fetched(needed))
            sound = True
            for path, (size, digest) in ((folder / name, good.files[name]) for name in needed):
                as_written = path.is_file() and path.stat().st_size == size
                sound = sound and as_written and sha256(path) == digest
            if not all(ranks.gathered(sound)):
                continue
            error = None
            if converts and (ranks.first or not self.store.shared):
                try:
                    shutil.rmtree(folder / UNIVERSAL, ignore_errors=True)
                    to_universal(folder / good.tag, folder / UNIVERSAL)
                except Exception as raised:
                    error = raised
            if not all(ranks.gathered(error is None)):
                workers = f"{plural(ranks.world_size, 'worker')} instead of {good.world_size}"
                self._give_up(good, f"cannot go on with {workers}", error)
            self._newest = good
            self._found = folder, UNIVERSAL if converts else good.tag
            return self._found[1]
        if named:
            self._give_up(WrittenCheckpoint(**named[0]), "is not as it was written")
        return None

    def load(self, engine: Any) -> Spent:
        """Go on from what `find` has found; a fresh start if that is nothing.

        Raises:
            DamagedCheckpoint: it cannot be read; it is removed.
        """
        if self._found is None:
            self.find()
        if self._found is None or self._newest is None:
            return Spent()
        spent, error = Spent(), None
        try:
            spent = Spent(**ds.load(engine, *self._found)["spent"])
        except Exception as raised:
            error = raised
        if not all(self.ranks.gathered(error is None)):
            self._give_up(self._newest, "cannot be read", error)
        self._close()
        return spent

    def remove(self) -> None:
        """Remove all of them: the trial is over."""
        if self.ranks.first:
            self.store.remove()

    def _named(self) -> list[WrittenCheckpoint]:
        """The checkpoints of this training that the marker names, newest first."""
        try:
            marker = json.loads(self.store.read(MARKER) or "null")
            before = marker.pop("before")
            found = [
                WrittenCheckpoint(**values) for values in (marker, before) if values is not None
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
        return [good for good in found if good.fingerprint == self.fingerprint]

    def _give_up(self, good: WrittenCheckpoint, why: str, error: Exception | None = None) -> None:
        """Remove all checkpoints: the weights may be half loaded, so another run starts afresh."""
        self._close()
        self.remove()
        detail = "" if error is None else f": {cut_line(str(error))}"
        self.ranks.raise_together(
            DamagedCheckpoint(f"{self.store}/{good.tag} {why} and was removed{detail}")
        )

    def _close(self) -> None:
        """Leave the local folder, on every rank before one of them removes it."""
        self.ranks.gathered(None)
        if self.store.shared and self.ranks.first:
            self.store.remove(UNIVERSAL)
        self._fetched.close()


class SharedPrefixes:
    """Checkpoints that trials of one stage share: of trainings that agree up to there.

    A trial with `TrialSpec.forks` writes one at each of these points, unless there is one, and
    begins with the latest one of its own course. Each is in a folder of its own, named by the
    course up to there and the trial that wrote it, so that two may write at the same time.
    """

    def __init__(self, trial: TrialSpec, policy: MaskPolicy, steps: int, ranks: Ranks) -> None:
        """`steps`: expected of the whole training; 0, not known, shares nothing."""
        self.number, self.ranks, forks = trial.number, ranks, trial.forks
        self.store = store_at("" if forks is None else forks.store)
        self.names = {
            at: f"{at}-{trial.prefix(policy.until(at))}-{steps}-{ranks.world_size}"
            for at in (forks.at if forks is not None and steps else ())
        }

    def find(self) -> Checkpoints | None:
        """The checkpoints of the latest shared point, found and ready to be loaded."""
        for name in reversed(self.names.values()):
            for checkpoints in self._written(name):
                with suppress(AgreedFailure):  # a damaged one is removed, and does not matter
                    if checkpoints.find() is not None:
                        return checkpoints
        return None

    def save(self, engine: Any, spent: Spent, before: float, now: float) -> None:
        """Write a checkpoint for each of the points in (before, now] that has none.

        A failure that all ranks know of costs the checkpoint only: training goes on.
        """
        for at, name in self.names.items():
            if before < at <= now and not self._written(name):
                store = self.store.inside(f"{name}-{self.number}")
                try:
                    Checkpoints(store, name, self.ranks).save(engine, spent)
                except (OSError, AgreedFailure) as error:
                    if isinstance(error, OSError) and self.ranks.world_size > 1:
                        raise

    def _written(self, name: str) -> list[Checkpoints]:
        """Those of this name that are complete."""
        found = [
            child
            for child in (self.store.children() if self.ranks.first else ())
            if child.startswith(f"{name}-") and self.store.inside(child).read(MARKER)
        ]
        folders = self.ranks.from_first(found)
        return [Checkpoints(self.store.inside(f), name, self.ranks) for f in folders]


def owner(name: str) -> int:
    """The rank that writes a file of DeepSpeed's; what all ranks have in common is rank 0's."""
    found = re.search(r"zero_pp_rank_(\d+)_", name)
    return int(found[1]) if found else 0


def _is_full(folder: Path) -> bool:
    """Whether the folder's disk has less than 16 pages left."""
    try:
        return shutil.disk_usage(folder).free < 4096 * 16
    except OSError:
        return False
