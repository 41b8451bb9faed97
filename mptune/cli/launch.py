"""Run a search somewhere else: on a Ray cluster, on Kubernetes, under Slurm, or beside this shell.

`mptune launch SPEC --on PROFILE` submits the search and follows it; its report is copied to
runs/NAME at the end. Ctrl-C detaches and stops nothing. From then on the search goes by its name:
`status`, `logs` (follows again), `fetch` and `stop` work from any machine with the same profile.
`stop` removes what was made and keeps the study and the artifacts: launched again, it goes on.
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
    from mptune.launch.base import Launcher, Search

VERBS = ("status", "logs", "fetch", "stop")

EXAMPLES = """\
examples:
  mptune launch spec.yaml --on launchers/kubernetes.yaml --dry-run          # the exact manifests
  mptune launch spec.yaml --on launchers/kubernetes.yaml --dry-run=server   # would it be taken?
  mptune launch spec.yaml --on launchers/kubernetes.yaml                    # submit and follow
  mptune launch status NAME --on launchers/kubernetes.yaml
  mptune launch logs NAME --on launchers/kubernetes.yaml                    # follow again
  mptune launch fetch NAME --on launchers/kubernetes.yaml --into runs/NAME
  mptune launch stop NAME --on launchers/kubernetes.yaml
  mptune launch spec.yaml --on launchers/slurm.yaml --detach
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="+", metavar="SPEC | VERB NAME", help=f"a spec, or one of {', '.join(VERBS)}"
    )
    parser.add_argument(
        "--on", type=Path, required=True, metavar="PROFILE", help="launchers/*.yaml: where"
    )
    _arguments.add_overrides(parser)
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="client",
        metavar="server",
        help="print what would be made and stop; =server asks the API server as well",
    )
    parser.add_argument("--detach", action="store_true", help="submit and return")
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="where the report goes; default runs/NAME"
    )


def run(arguments: argparse.Namespace) -> int:
    from mptune.spec.source import read_plugin

    verb, subject = _parsed(arguments.words)
    if arguments.dry_run not in (None, "client", "server"):
        raise InputError(f"--dry-run={arguments.dry_run}: must be --dry-run or --dry-run=server")
    launcher: Launcher = read_plugin(arguments.on, "launchers", "kind")
    if verb == "launch":
        return _launch(arguments, launcher, Path(subject))
    return _again(arguments, launcher, verb, _name(subject))


def _parsed(words: list[str]) -> tuple[str, str]:
    if len(words) == 1 and words[0] not in VERBS:
        return "launch", words[0]
    if words[0] not in VERBS:
        raise InputError(
            f"mptune launch {words[0]!r}: no such verb; verbs: {', '.join(VERBS)}"
            f"{did_you_mean(words[0], VERBS)}"
        )
    if len(words) != 2:
        raise InputError(f"mptune launch {words[0]}: needs the NAME of one search")
    return words[0], words[1]


def _name(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", word):
        raise InputError(f"{word!r} is not the name of a search; it is the spec's `name`")
    return word


def _launch(arguments: argparse.Namespace, launcher: Launcher, path: Path) -> int:
    search = _search(path, arguments.overrides)
    if arguments.dry_run:
        print(launcher.render(search), end="")
        if arguments.dry_run == "server":
            print("\n".join(launcher.check(search)), file=sys.stderr)
        return 0
    launcher.submit(search)
    _say(f"{search.name}: submitted")
    if arguments.detach:
        _say(_how_to_go_on(search.name, arguments.on))
        return 0
    return _follow(launcher, search.name, arguments.on, arguments.into)


def _search(path: Path, overrides: list[str]) -> Search:
    """The spec, checked as far as this machine can: the data may be where it will run only."""
    from mptune.launch.base import Search
    from mptune.spec.source import SpecFile

    file = SpecFile.read(path, overrides)
    spec = file.validate(data_is_here=False)
    return Search(
        name=spec.name,
        spec=file.text,
        resources=spec.resources,
        source=path,
        overrides=tuple(overrides),
        storage_url=spec.storage.url,
    )


def _again(arguments: argparse.Namespace, launcher: Launcher, verb: str, name: str) -> int:
    if verb == "status":
        state = launcher.status(name)
        print(f"{name}: {state.words}")
        return 3 if state.phase == "failed" else 0
    if verb == "logs":
        return _follow(launcher, name, arguments.on, arguments.into)
    if verb == "fetch":
        return _fetch(launcher, name, arguments.into)
    launcher.stop(name)
    _say(f"{name}: stopped and removed; its study and artifacts are kept")
    return 0


def _follow(launcher: Launcher, name: str, profile: Path, into: Path | None) -> int:
    try:
        state = launcher.follow(name, _say)
    except KeyboardInterrupt:
        _say(f"\ndetached; {name} runs on.\n{_how_to_go_on(name, profile)}")
        return 0
    if state.phase != "succeeded":
        return 3
    return _fetch(launcher, name, into)


def _fetch(launcher: Launcher, name: str, into: Path | None) -> int:
    target = into or Path("runs") / name
    launcher.fetch(name, target)
    _say(f"report: {target / 'report' / 'report.html'}")
    return 0


def _how_to_go_on(name: str, profile: Path) -> str:
    return "\n".join(f"  mptune launch {verb} {name} --on {profile}" for verb in VERBS)


def _say(line: str) -> None:
    print(line, flush=True)
