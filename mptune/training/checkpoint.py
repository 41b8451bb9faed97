"""Checkpoints of one running trial: whole or not at all, and one good one at any time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        engine.save_checkpoint(
            str(self.root), tag=tag, client_state={"spent": spent.as_json()}, save_latest=False
        )
        if self.ranks.first:
            write_json(self._marker, {"tag": tag, "fingerprint": self.fingerprint})
            for old in self.root.glob("step*"):
                if old.name != tag:
                    shutil.rmtree(old, ignore_errors=True)

    def load(self, engine: Any) -> Spent:
        """Go on from the good checkpoint of this very trial; a fresh start if there is none."""
        tag = self.ranks.from_first(self._good_tag() if self.ranks.first else None)
        if tag is None:
            return Spent()
        _, client = engine.load_checkpoint(str(self.root), tag=tag)
        return Spent(**client["spent"])

    def remove(self) -> None:
        """The trial is over."""
        if self.ranks.first:
            shutil.rmtree(self.root, ignore_errors=True)

    @property
    def _marker(self) -> Path:
        return self.root / "latest.json"

    def _good_tag(self) -> str | None:
        try:
            marker = json.loads(self._marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return str(marker["tag"]) if marker["fingerprint"] == self.fingerprint else None
