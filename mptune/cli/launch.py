"""Run a search on a Ray cluster, on Kubernetes, under Slurm, or in the background.

`mptune launch SPEC --on PROFILE` submits the search, follows it, and copies its report to
runs/NAME at the end. Ctrl-C detaches, and the search continues. After that, refer to the search by
its name: `status`, `logs` (follows again), `fetch` and `stop` work on any machine that has the
profile. `stop` deletes the jobs and pods but keeps the study and the artifacts: launch the same
spec again to resume.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mptune.cli import _arguments
from mptune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from mptune.launch.base import Launcher

ACTIONS = ("status", "logs", "fetch", "stop")

EXAMPLES = """\
examples:
  mptune launch spec.yaml --on launchers/kubernetes.yaml --dry-run          # the exact manifests
  mptune launch spec.yaml --on launchers/kubernetes.yaml --dry-run=server   # checked by the server
  mptune launch spec.yaml --on launchers/kubernetes.yaml                    # submit and follow
  mptune launch status NAME --on launchers/kubernetes.yaml
  mptune launch logs NAME --on launchers/kubernetes.yaml                    # follow again
  mptune launch fetch NAME --on launchers/kubernetes.yaml --into runs/NAME
  mptune launch stop NAME --on launchers/kubernetes.yaml
  mptune launch spec.yaml --on launchers/slurm.yaml --detach
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = ", ".join(ACTIONS)
    parser.add_argument(
        "target",
        nargs="+",
        metavar="SPEC | ACTION NAME",
        help=f"a spec, or one of {actions} and the name of a search",
    )
    parser.add_argument(
        "--on", type=Path, required=True, metavar="PROFILE", help="e.g. launchers/ray.yaml"
    )
    _arguments.add_overrides(parser)
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="client",
        metavar="server",
        help="print the manifests or scripts and stop; =server: the API server checks them",
    )
    parser.add_argument("--detach", action="store_true", help="submit and return at once")
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="folder for the report; default runs/NAME"
    )


def run(arguments: argparse.Namespace) -> int:
    from mptune.spec.source import read_plugin

    first, *rest = arguments.target
    if arguments.dry_run not in (None, "client", "server"):
        raise InputError(f"--dry-run={arguments.dry_run}: must be --dry-run or --dry-run=server")
    if first not in ACTIONS and rest:
        raise InputError(
            f"mptune launch {first!r}: no such action; actions: {', '.join(ACTIONS)}"
            f"{did_you_mean(first, ACTIONS)}"
        )
    launcher: Launcher = read_plugin(arguments.on, "launchers", "kind")
    if first not in ACTIONS:
        return _launch(arguments, launcher, Path(first))
    if len(rest) != 1:
        raise InputError(f"mptune launch {first}: needs the NAME of one search")
    name = rest[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise InputError(f"{name!r} is not the name of a search; use the `name` of its spec")
    if first == "status":
        state = launcher.status(name)
        print(f"{name}: {state.text}")
        return 3 if state.phase == "failed" else 0
    if first == "logs":
        return _follow(arguments, launcher, name)
    if first == "fetch":
        return _fetch(arguments, launcher, name)
    launcher.stop(name)
    _say(f"{name}: stopped and removed; its study and artifacts are kept")
    return 0


def _launch(arguments: argparse.Namespace, launcher: Launcher, path: Path) -> int:
    from mptune.launch.base import Submission
    from mptune.spec.source import SpecFile

    file = SpecFile.read(path, arguments.overrides)
    # The data may exist only where the search will run.
    spec = file.validate(data_is_here=False)
    search = Submission(
        name=spec.name,
        spec=file.text,
        resources=spec.resources,
        source=path,
        overrides=tuple(arguments.overrides),
        storage_url=spec.storage.url,
    )
    if arguments.dry_run:
        print(launcher.render(search), end="")
        if arguments.dry_run == "server":
            print("\n".join(launcher.check(search)), file=sys.stderr)
        return 0
    launcher.submit(search)
    _say(f"{search.name}: submitted")
    if arguments.detach:
        _say(_next_commands(arguments, search.name))
        return 0
    return _follow(arguments, launcher, search.name)


def _follow(arguments: argparse.Namespace, launcher: Launcher, name: str) -> int:
    try:
        state = launcher.follow(name, _say)
    except KeyboardInterrupt:
        _say(f"\ndetached; {name} continues.\n{_next_commands(arguments, name)}")
        return 0
    if state.phase != "succeeded":
        return 3
    return _fetch(arguments, launcher, name)


def _fetch(arguments: argparse.Namespace, launcher: Launcher, name: str) -> int:
    target = arguments.into or Path("runs") / name
    launcher.fetch(name, target)
    _say(f"report: {target / 'report' / 'report.html'}")
    return 0


def _next_commands(arguments: argparse.Namespace, name: str) -> str:
    return "\n".join(f"  mptune launch {a} {name} --on {arguments.on}" for a in ACTIONS)


def _say(line: str) -> None:
    print(line, flush=True)
