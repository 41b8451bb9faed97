"""Checkpoints of one running trial: whole or not at all, and one good one at any time."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mptune.errors import DamagedCheckpoint, is_disk_full
from mptune.paths import write_json
from mptune.training.ranks import Ranks
from mptune.training.schedule import Spent


@dataclass(frozen=True)
class Checkpoints:
    """The directory `root` on a file system that all ranks share.

    root/
        latest.json      names the tag that is good, and the trial it belongs to
        step00000120/    DeepSpeed's files
    """

    root: Path
    fingerprint: str
    ranks: Ranks

    def save(self, engine: Any, spent: Spent) -> None:
        """Write a new tag on all ranks, then let the marker name it and drop the older ones."""
        tag = f"step{spent.steps:08d}"
        # DeepSpeed returns when every rank has written; its own `latest` file is not atomic.
        try:
            engine.save_checkpoint(
                str(self.root), tag=tag, client_state={"spent": spent.as_json()}, save_latest=False
            )
        except Exception as error:
            self._explain(error, tag)
            raise
        if self.ranks.first:
            write_json(self._marker, {"tag": tag, "fingerprint": self.fingerprint})
            for old in self.root.glob("step*"):
                if old.name != tag:
                    shutil.rmtree(old, ignore_errors=True)

    def load(self, engine: Any) -> Spent:
        """Go on from the good checkpoint of this very trial; a fresh start if there is none.

        Raises:
            DamagedCheckpoint: it cannot be read. It is removed: the weights may be half loaded, so
                the trial begins anew in another run of it.
        """
        tag = self.ranks.from_first(self._good_tag() if self.ranks.first else None)
        if tag is None:
            return Spent()
        try:
            _, client = engine.load_checkpoint(str(self.root), tag=tag)
            return Spent(**client["spent"])
        except Exception as error:
            shutil.rmtree(self.root, ignore_errors=True)
            raise DamagedCheckpoint(f"{self.root / tag} cannot be read and was removed") from error

    def remove(self) -> None:
        """The trial is over."""
        if self.ranks.first:
            shutil.rmtree(self.root, ignore_errors=True)

    def _explain(self, error: Exception, tag: str) -> None:
        """Torch does not say why it could not write; half a checkpoint gives its room back.

        Raises:
            OSError: the disk is full.
        """
        full = is_disk_full(error) or _no_room(self.root)
        shutil.rmtree(self.root / tag, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root)) from error

    @property
    def _marker(self) -> Path:
        return self.root / "latest.json"

    def _good_tag(self) -> str | None:
        try:
            marker = json.loads(self._marker.read_text(encoding="utf-8"))
            tag, fingerprint = str(marker["tag"]), marker["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        good = fingerprint == self.fingerprint and (self.root / tag).is_dir()
        return tag if good else None


def _no_room(folder: Path) -> bool:
    """Whether not even a page is left where the folder is."""
    try:
        return shutil.disk_usage(folder).free < 4096 * 16
    except OSError:
        return False
