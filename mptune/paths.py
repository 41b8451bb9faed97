"""The file names of run and trial directories, atomic writing of files, and this machine."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


def cache_directory() -> Path:
    """The folder of prepared data of all searches: MPTUNE_CACHE, or the user's cache folder.

    The machines of a cluster must share this folder.
    """
    named = os.environ.get("MPTUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).absolute() if named else Path(base) / "mptune"


class Inside:
    """An attribute of a directory: the path of a file or folder inside its `root`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, directory: Any, kind: type | None = None) -> Path:
        return Path(directory.root, self.name)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search."""

    root: Path

    spec = Inside("spec.yaml")
    """The user's file as given."""
    resolved = Inside("resolved.yaml")
    """The same with every default written out."""
    database = Inside("study.db")
    """Optuna's storage, unless the spec names another."""
    lock = Inside("driver.lock")
    """Locked by the running driver."""
    driver = Inside("driver.txt")
    """Process and host of the last driver."""
    cluster = Inside("cluster.json")
    """The shared Ray cluster of the last driver, and the name prefix of its gangs."""
    events = Inside("events.jsonl")
    """All events, one JSON object per line."""
    status = Inside("status.json")
    """State of the running driver, at most a second old."""
    plan = Inside("plan.npz")
    """The frozen scoring plan."""
    prepared = Inside("prepared.json")
    """The prepared data: table, vocabulary, hashes."""
    confirm_plan = Inside("confirm-plan.npz")
    """The fresh plan of a confirmation."""
    confirm_prepared = Inside("confirm-prepared.json")
    """The prepared data of a confirmation."""
    forks = Inside("forks")
    """Checkpoints at points where trainings of a stage part, while it runs."""
    tracking = Inside("tracking.txt")
    """What sets the search apart from others of its name in a tracker."""
    tensorboard = Inside("tensorboard")
    wandb = Inside("wandb")
    logs = Inside("logs")
    report = Inside("report")
    report_html = Inside("report/report.html")
    report_md = Inside("report/report.md")
    report_json = Inside("report/report.json")

    def written(self) -> list[Path]:
        """The files and folders in the directory that mptune has made, or was making."""
        inside = [value for value in vars(RunDirectory).values() if isinstance(value, Inside)]
        names = {value.name.split("/")[0] for value in inside} | {*FOLDERS.values(), "lost+found"}
        aside = (f"{self.database.name}-", *(f".{name}." for name in names))
        return [p for p in self.root.iterdir() if p.name in names or p.name.startswith(aside)]

    def trial(self, number: int, stage: str = "search") -> TrialDirectory:
        """The directory of one trial of a stage: trials/0007/, confirm/0001/ or compare/0001/."""
        return TrialDirectory(self.root / FOLDERS[stage] / f"{number:04d}")


FOLDERS = {
    "search": "trials",
    "confirmation": "confirm",
    "ladder": "ladder",
    "comparison": "compare",
}
"""Stage -> folder of its trials."""


@dataclass(frozen=True)
class TrialDirectory:
    """The files of one trial."""

    root: Path

    spec = Inside("trial.json")
    result = Inside("result.json")
    scores = Inside("scores.npz")
    """Scores per sequence: `nats_per_sequence` [n], `rows` [n] and `groups` [n] of the whole plan,
    and `at_rungs` [rungs, m], nats of each sequence of the rung plan, the plan's first m."""
    events = Inside("events.jsonl")
    checkpoint = Inside("checkpoint")
    checkpoint_marker = Inside("checkpoint/latest.json")
    """Names the complete checkpoints."""
    weights = Inside("model")
    """The final weights, if they are kept: a folder that transformers opens."""
    module = Inside("model/module.pt")
    """All weights of the module, for `mptune impute`."""
    kpi = Inside("kpi.json")
    """The user's own measure of the trial: its function's name and a `KpiValue`."""
    traceback = Inside("traceback.txt")
    logs = Inside("logs")
    """The output of each rank."""

    @classmethod
    def of(cls, directory: str) -> TrialDirectory:
        """The directory that a TrialSpec names."""
        return cls(Path(directory))

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def ranks(self) -> list[int]:
        """The ranks with a log."""
        return sorted(int(p.stem.removeprefix("rank-")) for p in self.logs.glob("rank-*.log"))


TEMPORARY = re.compile(
    r"\.({})\.[a-z0-9_]{{8}}(\.\w+)?".format(
        "|".join(
            re.escape(Path(value.name).name)
            for kind in (RunDirectory, TrialDirectory)
            for value in vars(kind).values()
            if isinstance(value, Inside)
        )
    )
)
"""Names of files that `write_aside` makes for a run, and a killed process leaves."""


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


def drop_half_line(path: Path) -> None:
    """Remove what a killed process, or a full disk, has left of a file's last line."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def check_is_file(path: Path) -> None:
    """Refuse what is there but no file: to open a pipe would wait for ever.

    Raises:
        OSError: it is a pipe, a device or a circle of links.
    """
    if os.path.lexists(path) and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "is not a file", str(path))


def read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 are a ValueError, all else an OSError."""
    check_is_file(path)
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value that a file has as JSON; None if the file is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def read_model(path: Path, kind: type[Model]) -> Model | None:
    """The same, as this model."""
    try:
        return kind.model_validate_json(read_text(path))
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """A TCP port on which no process of this machine listens now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def release_freed_memory() -> None:
    """Return freed memory of this process to the machine."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def node_bytes() -> float:
    """Bytes of memory of this machine, or the limit of its container."""
    import psutil

    limits = [float(psutil.virtual_memory().total)]
    for file in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(float(Path(file).read_text()))
    return min(limits)
