"""Every file name of a run directory, in one class; files appear whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """Where prepared data is shared between searches: MPTUNE_CACHE, or the user's cache folder.

    On a cluster of several machines it must be a folder that all of them see.
    """
    named = os.environ.get("MPTUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).absolute() if named else Path(base) / "mptune"


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search.

    root/
        spec.yaml             the user's file as given
        resolved.yaml         the same with every default written out
        study.db              Optuna's storage (unless the spec names another)
        driver.lock           held by the running driver; holds its host and pid
        cluster.json          the shared Ray cluster of the last driver, and the mark of its gangs
        events.jsonl          everything that happened, one JSON object a line
        status.json           where the running driver stands, at most a second old
        plan.npz              the frozen scoring plan
        trials/0007/          one trial, see TrialDirectory
        compare/0001/         one run of a comparison, likewise
        confirm/0001/         one run of a confirmation, scored on confirm-plan.npz
        report/               report.html, report.md, report.json, figures
    """

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    @property
    def resolved(self) -> Path:
        return self.root / "resolved.yaml"

    @property
    def database(self) -> Path:
        return self.root / "study.db"

    @property
    def lock(self) -> Path:
        return self.root / "driver.lock"

    @property
    def cluster(self) -> Path:
        return self.root / "cluster.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.npz"

    @property
    def prepared(self) -> Path:
        """What preparing the data said: table, vocabulary, hashes."""
        return self.root / "prepared.json"

    @property
    def confirm_plan(self) -> Path:
        """The fresh plan of a confirmation, and what preparing it said."""
        return self.root / "confirm-plan.npz"

    @property
    def confirm_prepared(self) -> Path:
        return self.root / "confirm-prepared.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def report_html(self) -> Path:
        return self.report / "report.html"

    @property
    def report_md(self) -> Path:
        return self.report / "report.md"

    @property
    def report_json(self) -> Path:
        return self.report / "report.json"

    def trial(self, number: int, study: str = "search") -> TrialDirectory:
        """The directory of one trial of the search, or of a run of its comparison."""
        folder = "trials" if study == "search" else study
        return TrialDirectory(self.root / folder / f"{number:04d}")


@dataclass(frozen=True)
class TrialDirectory:
    """The files of one trial."""

    root: Path

    @classmethod
    def of(cls, directory: str) -> TrialDirectory:
        """The directory that a TrialSpec names."""
        return cls(Path(directory))

    @property
    def spec(self) -> Path:
        return self.root / "trial.json"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def scores(self) -> Path:
        """Per-sequence scores (npz): `nats_per_sequence` [n] and `rows` [n] of the whole plan, and
        `at_rungs` [rungs, m], nats of each sequence of the rung plan."""
        return self.root / "scores.npz"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def checkpoint_marker(self) -> Path:
        """Names the good checkpoints."""
        return self.checkpoint / "latest.json"

    @property
    def weights(self) -> Path:
        """The final weights, a folder that transformers opens, if they are kept."""
        return self.root / "model"

    @property
    def module(self) -> Path:
        """Beside them, all of the module's weights, for `mptune impute`."""
        return self.weights / "module.pt"

    @property
    def kpi(self) -> Path:
        """What the user's own function said of the trial: its name and a `KpiValue`."""
        return self.root / "kpi.json"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def traceback(self) -> Path:
        return self.root / "traceback.txt"

    @property
    def logs(self) -> Path:
        """What each rank printed."""
        return self.root / "logs"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def ranks(self) -> list[int]:
        """Those that have printed somewhere here."""
        return sorted(int(p.stem.removeprefix("rank-")) for p in self.logs.glob("rank-*.log"))

    @property
    def stacks(self) -> Path:
        """Where every rank stood when the gang did nothing any more."""
        return self.root / "stacks.txt"


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's text atomically."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace the file by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def free_port() -> int:
    """A TCP port that no process listens on now, at any address of this machine."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def node_bytes() -> float:
    """Memory of this machine, or what its container may use of it."""
    import psutil

    limits = [float(psutil.virtual_memory().total)]
    for file in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(float(Path(file).read_text()))
    return min(limits)
