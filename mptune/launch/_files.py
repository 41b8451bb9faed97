"""Searches whose run directory this machine sees: state, log and report are files."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mptune.errors import did_you_mean
from mptune.launch.base import LaunchError, Say, State
from mptune.paths import RunDirectory, write_json, write_text

LOOK_S = 0.5
DONE = re.compile(r"\((\d+) of (\d+) done\)|: (\d+) of (\d+) trials done")


@dataclass(frozen=True)
class Launched:
    """The files that a launcher adds to the run directory of one search."""

    runs: Path
    name: str

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.runs / self.name)

    @property
    def folder(self) -> Path:
        return self.run.logs / "launch"

    @property
    def script(self) -> Path:
        return self.folder / "job.sh"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def exit_code(self) -> Path:
        """Written by the job as its last act."""
        return self.folder / "exit-code"

    @property
    def ticket(self) -> Path:
        """What identifies the job to whoever runs it."""
        return self.folder / "job.json"

    def begin(self, script: str) -> None:
        """Files for a new job; the log of an earlier one goes on."""
        self.exit_code.unlink(missing_ok=True)
        write_text(self.script, script)
        self.script.chmod(0o755)

    def record(self, ticket: dict[str, Any]) -> None:
        write_json(self.ticket, ticket)

    def job(self) -> dict[str, Any]:
        """Raises LaunchError if there is none of this name."""
        try:
            found: dict[str, Any] = json.loads(self.ticket.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = [p.name for p in self.runs.glob("*/")] if self.runs.is_dir() else []
            near = did_you_mean(self.name, known)
            raise LaunchError(
                f"there is no launched search {self.name} in {self.runs}{near}"
            ) from None
        return found

    def state(self, alive: Callable[[], str | None]) -> State:
        """`alive` says in words how the job waits or runs, or None if nobody knows it any more."""
        words = alive()
        if self.exit_code.exists():
            return _ended(int(self.exit_code.read_text(encoding="utf-8")), self.log)
        if words is None:
            return State("failed", f"ended without a word; {_go_on(self.log)}")
        if words != "running":
            return State("waiting", f"waiting: {words}")
        return State("running", f"running{progress(self._lines())}")

    def _lines(self) -> list[str]:
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def follow(self, state: Callable[[], State], say: Say) -> State:
        """Show the log and every change until the job has ended."""
        said, shown = "", 0
        while True:
            now = state()
            if now.words != said and not now.words.startswith("running"):
                said = now.words
                say(f"{self.name}: {now.words}")
            lines = self._lines()
            for line in lines[shown:]:
                say(line)
            shown = len(lines)
            if now.ended:
                return now
            time.sleep(LOOK_S)

    def fetch(self, into: Path) -> None:
        if not self.run.report_html.exists():
            raise LaunchError("there is no report yet; it is written when the search ends")
        target = RunDirectory(into).report
        if target.resolve() != self.run.report.resolve():
            shutil.copytree(self.run.report, target, dirs_exist_ok=True)

    def forget(self) -> None:
        shutil.rmtree(self.folder)


def progress(lines: list[str]) -> str:
    """`: trial 13 of 64`, from the driver's own words."""
    for line in reversed(lines):
        if found := DONE.search(line):
            done, total = [int(g) for g in found.groups() if g is not None]
            return f": trial {min(done + 1, total)} of {total}"
    return ""


def _ended(code: int, log: Path) -> State:
    if code == 0:
        return State("succeeded", "finished")
    return State("failed", f"failed with exit code {code}; {_go_on(log)}")


def _go_on(log: Path) -> str:
    return f"{log} says why; launched again, it resumes"
