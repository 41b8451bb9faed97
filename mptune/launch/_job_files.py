"""The files of a job whose run directory this machine can read: state, log and report."""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any

from mptune.errors import did_you_mean
from mptune.launch.base import Launcher, LaunchError, Say, SearchState, follow, progress
from mptune.paths import RunDirectory, write_text

POLL_S = 0.5


class JobFiles:
    """The files that a launcher adds to the run directory of one search."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.name = runs, name
        self.run = RunDirectory(runs / name)
        self.folder = self.run.logs / "launch"
        self.script = self.folder / "job.sh"
        self.log = self.folder / "log.txt"
        self.exit_code = self.folder / "exit-code"
        """The job writes it when it ends."""
        self.id_file = self.folder / "job.json"
        """Identifies the job: a process id or a Slurm job number."""

    def begin(self, script: str) -> None:
        """Write the files of a new job; its log is appended to that of an earlier job."""
        self.exit_code.unlink(missing_ok=True)
        write_text(self.script, script)
        self.script.chmod(0o755)

    def read_id(self) -> dict[str, Any]:
        """What identifies the job.

        Raises:
            LaunchError: no search of this name was launched.
        """
        try:
            found: dict[str, Any] = json.loads(self.id_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = [p.name for p in self.runs.glob("*/")] if self.runs.is_dir() else []
            near = did_you_mean(self.name, known)
            raise LaunchError(
                f"there is no launched search {self.name} in {self.runs}{near}"
            ) from None
        return found

    def lines(self) -> list[str]:
        """The log so far."""
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class SharedFolderLauncher(Launcher):
    """A launcher whose searches write to a folder that this machine can read."""

    runs: str

    @abstractmethod
    def activity(self, job: JobFiles) -> str | None:
        """ "running", what the job waits for, or None if it no longer exists."""

    def job(self, name: str) -> JobFiles:
        return JobFiles(Path(self.runs), name)

    def status(self, name: str) -> SearchState:
        job = self.job(name)
        job.read_id()
        # A job can end between these two lines: its exit code is read last, so as not to miss it.
        activity = self.activity(job)
        exit_code = job.exit_code.read_text(encoding="utf-8") if job.exit_code.exists() else None
        advice = f"{job.log} says why; launch it again to resume"
        if exit_code is not None and int(exit_code) == 0:
            return SearchState("succeeded")
        if exit_code is not None:
            return SearchState("failed", f"failed with exit code {int(exit_code)}; {advice}")
        if activity is None:
            return SearchState("failed", f"ended without an exit code; {advice}")
        if activity != "running":
            return SearchState("waiting", activity)
        return SearchState("running", progress(job.lines()))

    def follow(self, name: str, say: Say) -> SearchState:
        # The log is read after the state, so the log of an ended job is complete.
        def look() -> tuple[SearchState, list[str]]:
            return self.status(name), self.job(name).lines()

        return follow(name, say, look, place=self.kind.capitalize(), pause_s=POLL_S)

    def fetch(self, name: str, into: Path) -> None:
        job = self.job(name)
        job.read_id()
        if not job.run.report_html.exists():
            raise LaunchError("there is no report yet; it is written when the search ends")
        target = RunDirectory(into).report
        if target.resolve() != job.run.report.resolve():
            shutil.copytree(job.run.report, target, dirs_exist_ok=True)
