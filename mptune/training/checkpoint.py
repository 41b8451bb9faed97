"""Checkpoints of one running trial: whole or not at all, verified, and good ones at any time.

    latest.json      names the good tags, newest first, and what is in them; written last
    step00000120/    DeepSpeed's files, those of each rank written by that rank

A training goes on from the newest tag that is as it was written. On another number of workers it
does so through DeepSpeed's universal format (Lian et al. 2024, arXiv 2406.18820).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mptune.artifacts import Store, sha256
from mptune.errors import DamagedCheckpoint, is_disk_full
from mptune.training import engine as ds
from mptune.training.ranks import Ranks
from mptune.training.schedule import Spent

MARKER = "latest.json"
UNIVERSAL = "universal"


@dataclass(frozen=True)
class Good:
    """A checkpoint that was written whole.

    Attributes:
        tag: its folder.
        fingerprint: what it is a checkpoint of, see `TrialSpec.course`.
        world_size: ranks that wrote it.
        files: bytes and SHA-256 of each file, by its name under the root.
    """

    tag: str
    fingerprint: str
    world_size: int
    files: Mapping[str, tuple[int, str]]

    @property
    def sharded(self) -> bool:
        """Whether the optimizer is shared out among the ranks, so that their number matters."""
        return any("optim_states" in name for name in self.files)


@dataclass(frozen=True)
class Found:
    """A verified checkpoint in a local folder, ready to be loaded."""

    good: Good
    folder: Path
    tag: str

    @property
    def universal(self) -> bool:
        return self.tag == UNIVERSAL


class Checkpoints:
    """The checkpoints in `store` of the training that `fingerprint` names.

    `find` looks for one before the engine is made, which depends on it; every method is to be
    called on every rank.
    """

    def __init__(self, store: Store, fingerprint: str, ranks: Ranks) -> None:
        self.store, self.fingerprint, self.ranks = store, fingerprint, ranks
        self._newest: Good | None = None
        self._found: Found | None = None
        self._fetched = ExitStack()

    def save(self, engine: Any, spent: Spent) -> None:
        """Write a new tag on all ranks, then let the marker name it.

        The newest one is kept beside it, in case that the new one does not stay as it was written.
        """
        tag = f"step{spent.steps:08d}"
        if self.ranks.first:
            self._remove_all_but(self._newest)
        with self.store.staged() as folder:
            self._write(engine, folder, tag, spent)
            files = self._publish(folder, tag)
        good = Good(tag, self.fingerprint, self.ranks.world_size, files)
        before = None if self._newest is None or self._newest.tag == tag else self._newest
        error = self._attempted(good, before) if self.ranks.first else None
        self.ranks.raise_together(error)
        self._newest = good

    def find(self) -> Found | None:
        """The newest checkpoint of this training that is as it was written; None if there is none.

        Raises:
            DamagedCheckpoint: none of those that were written is. They are removed, so that the
                trial begins anew in another run of it.
        """
        named = self.ranks.from_first(self._named() if self.ranks.first else [])
        for good in named:
            folder = self._verified(good)
            if folder is not None:
                self._newest, self._found = good, self._ready(good, folder)
                return self._found
        if named:
            self._give_up(named[0], "is not as it was written")
        return None

    def load(self, engine: Any) -> Spent:
        """Go on from what `find` has found; a fresh start if that is nothing.

        Raises:
            DamagedCheckpoint: it cannot be read; it is removed.
        """
        found = self._found or self.find()
        if found is None:
            return Spent()
        spent, error = None, None
        try:
            spent = Spent(**ds.load(engine, found.folder, found.tag)["spent"])
        except Exception as raised:
            error = raised
        if not all(self.ranks.gathered(error is None)):
            self._give_up(found.good, "cannot be read", error)
        self._close()
        assert spent is not None
        return spent

    def remove(self) -> None:
        """The trial is over."""
        if self.ranks.first:
            self.store.remove()

    def _write(self, engine: Any, folder: Path, tag: str, spent: Spent) -> None:
        # DeepSpeed returns when every rank has written; its own `latest` file is not atomic.
        try:
            engine.save_checkpoint(
                str(folder), tag=tag, client_state={"spent": spent.as_json()}, save_latest=False
            )
        except Exception as error:
            _explain(error, folder, tag)
            raise

    def _publish(self, folder: Path, tag: str) -> dict[str, tuple[int, str]]:
        """Put this rank's files into the store; size and checksum of all ranks' files."""
        files, error = {}, None
        try:
            names = [n for n in _names(folder, tag) if owner(n) == self.ranks.rank]
            files = {n: ((folder / n).stat().st_size, sha256(folder / n)) for n in names}
            self.store.keep(folder, names)
        except Exception as raised:
            error = raised
        self.ranks.raise_together(error)
        return {n: what for each in self.ranks.gathered(files) for n, what in each.items()}

    def _attempted(self, good: Good, before: Good | None) -> Exception | None:
        """The error of writing the marker, if there is one, for all ranks to know."""
        marker = {**asdict(good), "before": None if before is None else asdict(before)}
        try:
            self.store.write(MARKER, json.dumps(marker, indent=2) + "\n")
        except Exception as error:
            return error
        return None

    def _named(self) -> list[Good]:
        """What the marker names of this training, newest first."""
        try:
            marker = json.loads(self.store.read(MARKER) or "null")
            before = marker.pop("before")
            found = [Good(**values) for values in (marker, before) if values is not None]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
        return [good for good in found if good.fingerprint == self.fingerprint]

    def _verified(self, good: Good) -> Path | None:
        """The folder that has what this rank needs of it, or None if a rank's files differ."""
        needed = self._needed(good)
        folder = self._fetched.enter_context(self.store.fetched(needed))
        sound = all(_is_as_written(folder / name, *good.files[name]) for name in needed)
        return folder if all(self.ranks.gathered(sound)) else None

    def _needed(self, good: Good) -> list[str]:
        """All of it where it is to be converted; else rank 0's part and one's own."""
        mine = (0, self.ranks.rank)
        whole = self._converts(good)
        return [name for name in good.files if whole or owner(name) in mine]

    def _converts(self, good: Good) -> bool:
        return good.sharded and good.world_size != self.ranks.world_size

    def _ready(self, good: Good, folder: Path) -> Found:
        """As it is, or in the universal format for another number of ranks."""
        if not self._converts(good):
            return Found(good, folder, good.tag)
        error = None
        if self.ranks.first or not self.store.shared:
            try:
                shutil.rmtree(folder / UNIVERSAL, ignore_errors=True)
                ds.to_universal(folder / good.tag, folder / UNIVERSAL)
            except Exception as raised:
                error = raised
        if not all(self.ranks.gathered(error is None)):
            workers = f"{self.ranks.world_size} workers instead of {good.world_size}"
            self._give_up(good, f"cannot go on with {workers}", error)
        return Found(good, folder, UNIVERSAL)

    def _give_up(self, good: Good, why: str, error: Exception | None = None) -> None:
        """Remove all of it: the weights may be half loaded, so another run begins anew."""
        self._close()
        self.remove()
        said = "" if error is None else f": {' '.join(str(error).split())}"
        self.ranks.raise_together(
            DamagedCheckpoint(f"{self.store}/{good.tag} {why} and was removed{said}")
        )

    def _close(self) -> None:
        """Done with the local folder, on every rank before one of them removes it."""
        self.ranks.gathered(None)
        if self.store.shared and self.ranks.first:
            self.store.remove(UNIVERSAL)
        self._fetched.close()

    def _remove_all_but(self, kept: Good | None) -> None:
        for name in self.store.children():
            if name.startswith("step") and (kept is None or name != kept.tag):
                self.store.remove(name)


def owner(name: str) -> int:
    """The rank that writes a file of DeepSpeed's; what all ranks have in common is rank 0's."""
    found = re.search(r"zero_pp_rank_(\d+)_", name)
    return int(found[1]) if found else 0


def _names(folder: Path, tag: str) -> Iterator[str]:
    """Files of a tag, relative to the folder."""
    for path in sorted((folder / tag).rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _is_as_written(path: Path, size: int, digest: str) -> bool:
    return path.is_file() and path.stat().st_size == size and sha256(path) == digest


def _explain(error: Exception, folder: Path, tag: str) -> None:
    """Torch does not say why it could not write; half a checkpoint gives its room back.

    Raises:
        OSError: the disk is full.
    """
    full = is_disk_full(error) or _no_room(folder)
    shutil.rmtree(folder / tag, ignore_errors=True)
    if full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _no_room(folder: Path) -> bool:
    """Whether not even a page is left where the folder is."""
    try:
        return shutil.disk_usage(folder).free < 4096 * 16
    except OSError:
        return False
