"""A real search from the command line: small trials of DeepSpeed ranks, and what became of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mptune.paths import RunDirectory
from tests import studies

PATIENCE_S = 240.0
MPTUNE = ("-m", "mptune")

SPEC = """\
name: faults
data: {kind: text, source: "package:email/*.py", length: 64, max_train_sequences: 1000,
       max_heldout_sequences: 32}
model: {family: plain, width: 32, depth: 1}
policy: {kind: fixed, rate: {float: [0.1, 0.6]}}
training: {budget_tokens: 20000, batch_size: 8, checkpoint_every_s: 0.02, precision: fp32,
           optimizer: {learning_rate: 3e-3}}
score: {sequences: 16, rung_sequences: 8}
search: {trials: 2, seed: 1, pruner: {kind: none}}
resources: {ship_code: false}
"""

Outcome = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Running:
    """A driver that was started."""

    process: subprocess.Popen[str]
    run: RunDirectory

    def events(self, kind: str = "", number: int | None = None) -> list[dict[str, Any]]:
        if not self.run.events.exists():
            return []
        # A line may be half written.
        lines = self.run.events.read_text(encoding="utf-8").split("\n")[:-1]
        found = [json.loads(line)["event"] for line in lines]
        return [
            e for e in found if e["type"].startswith(kind) and number in (None, e["number"])
        ]  # fmt: skip

    def wait_for(self, kind: str, number: int | None = None, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of this kind."""
        return self.wait_until(lambda: self.events(kind, number)[count - 1 :])[0]

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """The first true value of it."""
        give_up = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < give_up, self.events()
            time.sleep(0.02)
        return found

    def end(self, code: int = 0) -> str:
        """Wait for it; what it has printed."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == code, out
        return out


@dataclass(frozen=True)
class Searches:
    """Searches by one spec in run directories of one folder."""

    folder: Path
    env: Mapping[str, str]
    arguments: tuple[str, ...] = ()

    def start(self, name: str, *more: str, program: Sequence[str] = MPTUNE) -> Running:
        spec = self.folder / "spec.yaml"
        if not spec.exists():
            spec.write_text(SPEC, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, *program, "search", spec.name, "--run-dir", name,
             *self.arguments, *more],
            cwd=self.folder, env={**self.env, "MPTUNE_CACHE": str(self.folder / "cache")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        return Running(process, RunDirectory(self.folder / name))

    def outcome(self, name: str, url: str | None = None) -> Outcome:
        """What must be the same however often it was disturbed, to the last digit."""
        found = studies.trials(RunDirectory(self.folder / name), url, "faults")
        return [
            (r.number, r.state, dict(r.params), dict(r.rungs), r.result and r.result.lml,
             r.result and r.result.rates)
            for r in found
        ]  # fmt: skip
