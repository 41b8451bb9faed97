"""The command that runs a search elsewhere."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mptune.cli._command import OVERRIDES, argument, command, flag, path
from mptune.errors import InputError, did_you_mean
from mptune.spec.source import SpecFile, read_plugin

if TYPE_CHECKING:
    from mptune.launch.base import Launcher

ACTIONS = ("status", "logs", "fetch", "stop")
"""What may be done to a launched search."""


@command(
    argument(
        "target",
        nargs="+",
        metavar="SPEC | ACTION NAME | doctor",
        help=f"a spec; one of {', '.join(ACTIONS)} and the name of a search; or doctor",
    ),
    argument("--on", type=Path, required=True, metavar="PROFILE", help="e.g. launchers/ray.yaml"),
    OVERRIDES,
    flag("--dry-run", "print the manifests or scripts and stop"),
    flag("--detach", "submit and return at once"),
    flag("--now", "with stop, but on Ray: give trials no time for a checkpoint"),
    path("--into", "DIR", "folder for the report; default runs/NAME"),
)
def run_launch(
    target: list[str],
    on: Path,
    overrides: list[str],
    dry_run: bool,
    detach: bool,
    now: bool,
    into: Path | None,
) -> int:
    """Run a search on a Ray cluster, on Kubernetes, or under Slurm.

    `mptune launch SPEC --on PROFILE` submits the search, follows it, and copies its report to
    runs/NAME at the end. Ctrl-C detaches, and the search continues. After that, refer to the search
    by its name: `status`, `logs` (follows again), `fetch` and `stop` work on any machine that has
    the profile. `stop` deletes the jobs and pods, and waits until they are gone, but keeps the
    study and the artifacts: launch the same spec again to resume.

    `doctor` checks what a search needs there, one line each, and creates nothing. Exit code 2:
    something is wrong.

    examples:
      mptune launch doctor --on launchers/kubernetes.yaml
      mptune launch spec.yaml --on launchers/kubernetes.yaml --dry-run   # the manifests
      mptune launch spec.yaml --on launchers/kubernetes.yaml             # submit and follow
      mptune launch status NAME --on launchers/kubernetes.yaml
      mptune launch logs NAME --on launchers/kubernetes.yaml             # follow again
      mptune launch fetch NAME --on launchers/kubernetes.yaml --into runs/NAME
      mptune launch stop NAME --on launchers/kubernetes.yaml
      mptune launch spec.yaml --on launchers/slurm.yaml --detach
    """
    first, *rest = target
    if first not in ACTIONS and rest:
        raise InputError(
            f"mptune launch {first!r}: no such action; actions: {', '.join(ACTIONS)}"
            f"{did_you_mean(first, ACTIONS)}"
        )
    launcher: Launcher = read_plugin(on, "launchers", "kind")
    if target == ["doctor"]:
        return _doctor(launcher)
    if first not in ACTIONS:
        name = _submit(launcher, Path(first), overrides, dry_run)
        if dry_run:
            return 0
        if detach:
            _say(_next_commands(name, on))
            return 0
        return _follow(launcher, name, on, into)
    if len(rest) != 1:
        raise InputError(f"mptune launch {first}: needs the NAME of one search")
    return _act(launcher, first, rest[0], on, into, now)


def _doctor(launcher: Launcher) -> int:
    verdicts = []
    for diagnosis in launcher.doctor():
        _say(diagnosis.text)
        verdicts.append(diagnosis.verdict)
    return 2 if "wrong" in verdicts else 0


def _act(launcher: Launcher, action: str, name: str, on: Path, into: Path | None, now: bool) -> int:
    """Do one of `ACTIONS` with a search that was launched; returns the exit code."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise InputError(f"{name!r} is not the name of a search; use the `name` of its spec")
    match action:
        case "status":
            state = launcher.status(name)
            print(f"{name}: {state.text}")
            return 3 if state.phase == "failed" else 0
        case "logs":
            return _follow(launcher, name, on, into)
        case "fetch":
            _fetch(launcher, name, into)
        case "stop":
            launcher.stop(name, now=now)
            _say(f"{name}: stopped and removed; its study and artifacts are kept")
    return 0


def _submit(launcher: Launcher, path: Path, overrides: list[str], dry_run: bool) -> str:
    """Submit the spec, or print what would be submitted; returns the name of the search."""
    from mptune.launch.base import Submission

    file = SpecFile.read(path, overrides)
    # The data may exist only where the search will run.
    spec = file.validate(data_is_here=False)
    search = Submission(
        name=spec.name,
        spec=file.text,
        resources=spec.resources,
        source=path,
        overrides=tuple(overrides),
        storage_url=spec.storage.url,
    )
    if dry_run:
        print(launcher.render(search), end="")
    else:
        launcher.submit(search)
        _say(f"{search.name}: submitted")
    return search.name


def _follow(launcher: Launcher, name: str, on: Path, into: Path | None) -> int:
    try:
        state = launcher.follow(name, _say)
    except KeyboardInterrupt:
        _say(f"\ndetached; {name} continues.\n{_next_commands(name, on)}")
        return 0
    if state.phase != "succeeded":
        return 3
    _fetch(launcher, name, into)
    return 0


def _fetch(launcher: Launcher, name: str, into: Path | None) -> None:
    target = into or Path("runs") / name
    launcher.fetch(name, target)
    _say(f"report: {target / 'report' / 'report.html'}")


def _next_commands(name: str, on: Path) -> str:
    return "\n".join(f"  mptune launch {action} {name} --on {on}" for action in ACTIONS)


_say = partial(print, flush=True)
