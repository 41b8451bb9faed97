"""What a launcher is: a profile (`launchers/*.yaml`) that says where a search's trials run."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import shutil
import tarfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Literal

from mptune.errors import InputError, MptuneError, plural
from mptune.paths import RunDirectory
from mptune.spec.schema import Resources, Section

Say = Callable[[str], None]
"""Shows the user one line."""

Phase = Literal["waiting", "running", "succeeded", "failed"]


class LaunchError(MptuneError):
    """A search cannot be launched, reached or continued; one line that says what to do."""


class Unreachable(LaunchError):
    """The place does not answer, or cannot answer now. Trying again may help."""


class Denied(LaunchError):
    """The place refuses a request; a place that has just started does so for some seconds."""


class Unchecked(LaunchError):
    """Something cannot be found out from here."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one thing that a search needs."""

    verdict: Literal["ok", "wrong", "not checked"]
    what: str
    detail: str

    @property
    def text(self) -> str:
        return f"{self.verdict}: {self.what}: {self.detail.strip()}"


def diagnose(what: str, ask: Callable[[], str]) -> Diagnosis:
    """What `ask` returns is well; what it raises is wrong, or cannot be found out."""
    try:
        return Diagnosis("ok", what, ask())
    except Denied:
        return Diagnosis("not checked", what, "your account may not ask for it")
    except Unchecked as error:
        return Diagnosis("not checked", what, str(error))
    except LaunchError as error:
        return Diagnosis("wrong", what, str(error))


@dataclass(frozen=True)
class Submission:
    """A search to be launched: its name, its spec as written, and what one trial needs."""

    name: str
    spec: str
    resources: Resources
    source: Path
    overrides: tuple[str, ...] = ()
    storage_url: str | None = None

    def gangs(self) -> list[tuple[str, Resources]]:
        """Every gang size of the search, each with the place of its key in the spec."""
        base, *larger = self.resources.gangs()
        where = f"{self.source.name}: resources"
        return [(where, base), *((f"{where}.by_size", gang) for gang in larger)]

    def arguments(self, spec: str, run_directory: str, *more: str) -> list[str]:
        """The command that runs the search, as a list of arguments."""
        sets = [part for override in self.overrides for part in ("--set", override)]
        return ["mptune", "search", spec, "--run-dir", run_directory, *sets, *more]


def check_gangs(search: Submission, fits: Callable[[Resources], bool], otherwise: str) -> None:
    """Check that every gang of the search fits.

    Raises:
        InputError: one does not; the message ends with `otherwise`.
    """
    for where, gang in search.gangs():
        if not fits(gang):
            raise InputError(
                f"{where}: a trial takes {plural(gang.workers, 'worker')} of "
                f"{plural(gang.cpus_per_worker, 'CPU')} and {plural(gang.gpus_per_worker, 'GPU')}; "
                f"{otherwise}"
            )


def machines_for(gang: Resources, cpus: float, gpus: float) -> float:
    """How many machines with `cpus` CPUs and `gpus` GPUs the gang needs.

    Infinity if one machine cannot hold a single worker.
    """
    fits = int(cpus / gang.cpus_per_worker + 1e-6)
    if gang.gpus_per_worker:
        fits = min(fits, int(gpus / gang.gpus_per_worker + 1e-6))
    return ceil(gang.workers / fits) if fits else inf


@dataclass(frozen=True)
class SearchState:
    """The state of a launched search.

    `detail` says what the search waits for, how far it is, or why it failed. `stuck` means that
    it cannot start unless somebody removes the cause, which `detail` names before its first colon.
    """

    phase: Phase
    detail: str = ""
    stuck: bool = False

    @property
    def ended(self) -> bool:
        return self.phase in ("succeeded", "failed")

    @property
    def text(self) -> str:
        """The state in one line."""
        if self.phase == "succeeded":
            return "finished"
        shown = (self.detail,) if self.phase == "failed" else (self.phase, self.detail)
        return ": ".join(filter(None, shown))


class Launcher(Section):
    """A place to run a search. A launched search is identified by its name."""

    kind: str

    def ray_address(self) -> str | None:
        """The Ray cluster to attach to, or None to start one on this machine.

        Raises:
            InputError: the profile can only be launched.
        """
        name = self.kind.capitalize()
        raise InputError(f"a {name} profile is for `mptune launch`; `mptune search` runs here")

    @abstractmethod
    def render(self, search: Submission) -> str:
        """Exactly what `submit` would create, as text. Creates nothing.

        Raises:
            InputError: the search does not fit this place.
        """

    def doctor(self) -> Iterator[Diagnosis]:
        """Look at what a search needs there; this creates nothing."""
        yield Diagnosis("not checked", self.kind, "only that its profile is valid")

    @abstractmethod
    def submit(self, search: Submission) -> None:
        """Start the search. If that fails, nothing is left behind.

        Raises:
            InputError: the search does not fit this place.
            LaunchError: the place refuses it, or a search of this name exists already.
        """

    @abstractmethod
    def status(self, name: str) -> SearchState:
        """The present state of the search.

        Raises:
            LaunchError: no search has this name, or the place does not answer.
        """

    @abstractmethod
    def follow(self, name: str, say: Say) -> SearchState:
        """Show the log and every change of state until the search has ended.

        Raises:
            LaunchError: it cannot continue by itself; the message says what to do.
        """

    @abstractmethod
    def fetch(self, name: str, into: Path) -> None:
        """Copy the report into `into`.

        Raises:
            LaunchError: there is no report yet.
        """

    @abstractmethod
    def stop(self, name: str, *, now: bool = False) -> None:
        """End the search and remove what `submit` created; the study and the artifacts stay.

        Returns when its resources are free. With `now`, trials get no time for a
        checkpoint; Ray's Jobs API always gives them some.

        Raises:
            LaunchError: no search has this name.
        """


# --- following a search ------------------------------------------------------------------------

GIVE_UP_S = 600.0
"""How long a follower waits for a place that does not answer."""

DENIED_S = 30.0
"""How long a follower that was admitted before waits for a place that refuses it."""

STUCK_S = 45.0
"""How long a stuck search may stay stuck: a registry or a quota can recover by itself."""

DONE = re.compile(r"\((\d+) of (\d+) done\)|: (\d+) of (\d+) trials done")


def progress(log: list[str]) -> str:
    """`trial 13 of 64`, from the driver's last line of progress; empty if there is none."""
    for line in reversed(log):
        if found := DONE.search(line):
            done, total = [int(g) for g in found.groups() if g is not None]
            return f"trial {min(done + 1, total)} of {total}"
    return ""


def follow(
    name: str,
    say: Say,
    look: Callable[[], tuple[SearchState, list[str]]],
    *,
    place: str,
    pause_s: float,
) -> SearchState:
    """Show a search's log and each change of its state until it has ended.

    `look` returns the present state and all lines of the log so far. `place` names what answers
    it, for messages about an outage. Each look is followed by a pause of `pause_s` seconds.

    Raises:
        LaunchError: `look` raised it, the search stayed stuck for `STUCK_S`, or the place did
            not answer for `GIVE_UP_S` or refused for `DENIED_S`.
    """
    shown, last_text = 0, ""
    first = True
    silent_since = denied_since = stuck_since = inf
    while True:
        try:
            state, log = look()
        except (Unreachable, Denied) as error:
            now = time.monotonic()
            denied_since = min(denied_since, now) if isinstance(error, Denied) else inf
            if first and denied_since < inf:
                raise
            first = False
            if silent_since == inf:
                silent_since = now
                say(f"{error}; trying again")
            if now - silent_since > GIVE_UP_S or now - denied_since > DENIED_S:
                raise
            time.sleep(1)
            continue
        first = False
        if silent_since < inf:
            silent_since = denied_since = inf
            say(f"{place} answers again")
        for line in log[shown:]:
            say(line)
        shown = len(log)
        # The advice follows if the search stays stuck; while it runs, its log shows the progress.
        text = f"waiting: {state.detail.partition(':')[0]}" if state.stuck else state.text
        if state.phase != "running" and text != last_text:
            last_text = text
            say(f"{name}: {text}")
        if state.ended:
            return state
        stuck_since = min(stuck_since, time.monotonic()) if state.stuck else inf
        if time.monotonic() - stuck_since >= STUCK_S:
            raise LaunchError(
                f"{name} cannot start: {state.detail}; it still waits there: `mptune launch stop "
                f"{name}` removes it"
            )
        time.sleep(pause_s)


STARTED = "-- Runtime env is setting up."
"""The end of the line with which Ray begins a driver's log."""

RAY_LINES = re.compile(
    r"[-\d]+ [:\d]+,\d+\t[A-Z]+ (cli|sdk|job_manager)\.py:\d+ -- "
    r"|Running entrypoint for job |Waiting for Ray Dashboard "
)
COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TRACEBACK = r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*(?:\S.*\n|\Z)"
TRACEBACKS = re.compile(
    rf"^{_TRACEBACK}(?:\n(?:During|The above) .*\n\n{_TRACEBACK})*", re.MULTILINE
)
RAY_COMMAND = re.compile(r'File "[^"]*/bin/ray", line')


def driver_log(text: str) -> tuple[str | None, list[str]]:
    """Split a job's log into the line with which Ray started the driver, and the driver's lines.

    The first has the time of the start, so it identifies a run of the driver: each of several
    submitters prints the whole log. Colour codes, Ray's own lines and the tracebacks of its command
    `ray` are left out.
    """
    text = TRACEBACKS.sub(
        lambda found: "" if RAY_COMMAND.search(found[0]) else found[0],
        COLOUR.sub("", text.removesuffix("\n") + "\n"),
    )
    started: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if line.endswith(STARTED):
            started, lines = line, []
        elif not RAY_LINES.match(line):
            lines.append(line)
    return started, lines


# --- the report, sent through a log ------------------------------------------------------------

MARK = "mptune-report"


def quote_path(path: str) -> str:
    """The path as one word for a POSIX shell, which replaces a leading `~/`."""
    home = "~/" if path.startswith("~/") else ""
    return home + shlex.quote(path.removeprefix(home))


def pack_command(run_directory: str) -> str:
    """A shell command that prints the report as text.

    Every place can show a log; only some can copy a file.
    """
    report = RunDirectory(Path(run_directory)).report
    folder, name = quote_path(str(report.parent)), shlex.quote(report.name)
    return (
        f'cd {folder} && tar -cz {name} > "${{TMPDIR:-/tmp}}/report.tgz" '
        f'&& cd "${{TMPDIR:-/tmp}}" && echo "{MARK} $(sha256sum < report.tgz | cut -c1-64)" '
        f'&& base64 report.tgz && echo "{MARK} end"'
    )


def unpack(lines: Iterable[str], into: Path) -> None:
    """Write the report that `pack_command` printed below `into`.

    Raises:
        LaunchError: there is no report, it is incomplete, or it has anything but files and
            folders below `into`/report in it.
    """
    text = [line.strip() for line in lines]
    starts = [i for i, line in enumerate(text) if line.startswith(f"{MARK} ")]
    if len(starts) < 2:
        raise LaunchError("there is no report yet; it is written when the search ends")
    packed = base64.b64decode("".join(text[starts[0] + 1 : starts[1]]))
    if hashlib.sha256(packed).hexdigest() != text[starts[0]].split()[1]:
        raise LaunchError("the report arrived incomplete; fetch it again")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            # The filter="data" of tarfile exists from Python 3.11.4 on only.
            target = (into / member.name).resolve()
            # A planted module below `into` could be imported as the function of `score.kpi`.
            inside = target.is_relative_to(RunDirectory(into.resolve()).report)
            if not inside or not (member.isfile() or member.isdir()):
                raise LaunchError(f"the report contains {member.name!r}, which is not allowed")
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            content = archive.extractfile(member)
            assert content is not None, "extractfile() opens every regular file"
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
