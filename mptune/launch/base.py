"""What a launcher is: a profile (`launchers/*.yaml`) that says where a search's trials run."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import shutil
import tarfile
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Literal

from mptune.errors import MptuneError
from mptune.paths import RunDirectory
from mptune.spec.schema import Resources, Section

Say = Callable[[str], None]
"""Shows the user one line."""

Phase = Literal["waiting", "running", "succeeded", "failed"]


class LaunchError(MptuneError):
    """A search cannot be launched or reached, or cannot go on there; one line with what to do."""


@dataclass(frozen=True)
class Search:
    """A search to be launched: its name, its spec as written, and what one trial takes."""

    name: str
    spec: str
    resources: Resources
    source: Path
    overrides: tuple[str, ...] = ()
    storage_url: str | None = None

    def gangs(self) -> list[tuple[str, Resources]]:
        """Every gang that trials of some size run on, with the place of its key in the spec."""
        base, *larger = self.resources.gangs()
        where = f"{self.source.name}: resources"
        return [(where, base), *((f"{where}.by_size", gang) for gang in larger)]

    def arguments(self, spec: str, run_directory: str, *more: str) -> list[str]:
        """The command that drives the search where it runs."""
        sets = [part for override in self.overrides for part in ("--set", override)]
        return ["mptune", "search", spec, "--run-dir", run_directory, *sets, *more]


def in_words(gang: Resources) -> str:
    """What a trial takes."""
    return (
        f"a trial takes {gang.workers} workers of {gang.cpus_per_worker:g} CPUs and "
        f"{gang.gpus_per_worker:g} GPUs"
    )


def machines_for(gang: Resources, cpus: float, gpus: float) -> float:
    """How many machines of so many CPUs and GPUs hold it; infinity if not one worker fits."""
    fits = int(cpus / gang.cpus_per_worker + 1e-6)
    if gang.gpus_per_worker:
        fits = min(fits, int(gpus / gang.gpus_per_worker + 1e-6))
    return ceil(gang.workers / fits) if fits else inf


@dataclass(frozen=True)
class State:
    """How a launched search stands: whether it has ended, and how, in words for its user."""

    phase: Phase
    words: str

    @property
    def ended(self) -> bool:
        return self.phase in ("succeeded", "failed")


class Launcher(Section):
    """A place to run a search. Names identify launched searches; every verb takes one."""

    kind: str

    @abstractmethod
    def ray_address(self) -> str | None:
        """The Ray cluster to attach to, or None to start one on this machine."""

    @abstractmethod
    def render(self, search: Search) -> str:
        """Exactly what `submit` would make, as text; touches nothing.

        Raises:
            InputError: the search does not fit this place.
        """

    def check(self, search: Search) -> list[str]:
        """Ask the place itself whether it would take the search; one line per thing it would make.

        Raises:
            LaunchError: it would not, or there is nobody to ask.
        """
        raise LaunchError(f"--dry-run=server needs a Kubernetes profile; this one is {self.kind!r}")

    @abstractmethod
    def submit(self, search: Search) -> None:
        """Make it run. Nothing is left behind if that fails.

        Raises:
            InputError: the search does not fit this place.
            LaunchError: the place refuses it, or a search of this name is there already.
        """

    @abstractmethod
    def status(self, name: str) -> State:
        """How the search stands now.

        Raises:
            LaunchError: there is none of this name, or the place does not answer.
        """

    @abstractmethod
    def follow(self, name: str, say: Say) -> State:
        """Show its log and every change of its state until it has ended.

        Raises:
            LaunchError: it can not go on by itself; the message says what to do.
        """

    @abstractmethod
    def fetch(self, name: str, into: Path) -> None:
        """Copy its report into `into`.

        Raises:
            LaunchError: there is none yet.
        """

    @abstractmethod
    def stop(self, name: str) -> None:
        """End it and remove what `submit` made; the study and the artifacts stay.

        Raises:
            LaunchError: there is none of this name.
        """


# --- reports through logs ----------------------------------------------------------------------

MARK = "mptune-report"


def pack_command(run_directory: str) -> str:
    """A shell command that prints the report as text: every place has logs, few have copies."""
    report = RunDirectory(Path(run_directory)).report
    folder, name = shlex.quote(str(report.parent)), shlex.quote(report.name)
    return (
        f'cd {folder} && tar -cz {name} > "${{TMPDIR:-/tmp}}/report.tgz" '
        f'&& cd "${{TMPDIR:-/tmp}}" && echo "{MARK} $(sha256sum < report.tgz | cut -c1-64)" '
        f'&& base64 report.tgz && echo "{MARK} end"'
    )


def unpack(lines: Iterable[str], into: Path) -> None:
    """The report from what `pack_command` printed.

    Raises:
        LaunchError: there is none, the text was cut short on its way, or it names other places.
    """
    text = [line.strip() for line in lines]
    starts = [i for i, line in enumerate(text) if line.startswith(f"{MARK} ")]
    if len(starts) < 2:
        raise LaunchError("there is no report yet; it is written when the search ends")
    packed = base64.b64decode("".join(text[starts[0] + 1 : starts[1]]))
    if hashlib.sha256(packed).hexdigest() != text[starts[0]].split()[1]:
        raise LaunchError("the report did not arrive whole; fetch it again")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            _extract(archive, member, into)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """A file or folder below `into`, nothing else; Python has a filter for it from 3.11.4 on."""
    target = (into / member.name).resolve()
    if not target.is_relative_to(into.resolve()) or not (member.isfile() or member.isdir()):
        raise LaunchError(f"the report has {member.name!r} in it, which does not belong there")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = archive.extractfile(member)
    assert content is not None, "it is a file"
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
