"""Arguments and output that several commands share."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mptune.errors import NoResultError
from mptune.launch.base import Launcher
from mptune.spec.source import read_plugin

if TYPE_CHECKING:
    from rich.console import Console

    from mptune.analysis.results import Report
    from mptune.search.run import Run


def add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, metavar="SPEC", help="the search spec, a YAML file")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the spec, e.g. --set training.budget_tokens=2e6 (repeatable)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where everything goes; default runs/NAME"
    )
    add_where(parser)
    parser.add_argument(
        "--local", action="store_true", help="run trials in this process, without Ray"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the trials and start over")
    parser.add_argument("--yes", action="store_true", help="with --fresh: do not ask")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and stop")
    add_json(parser)
    add_lang(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", type=Path, metavar="PROFILE", help="a launcher profile, e.g. launchers/ray.yaml"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="an existing Ray cluster, or auto; default: start one",
    )


def address(arguments: argparse.Namespace) -> str | None:
    """The Ray cluster that the arguments name, or None.

    Raises:
        InputError: the profile is wrong.
    """
    if arguments.address or arguments.on is None:
        return arguments.address  # type: ignore[no-any-return]
    launcher: Launcher = read_plugin(arguments.on, "launchers", "kind")
    return launcher.ray_address()


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_lang(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lang",
        default="en",
        type=_language,
        metavar="CODE",
        help="language of the report: en (default), ja",
    )


def _language(code: str) -> str:
    """The code of a known language, checked before a search of hours begins."""
    from mptune.report.language import language

    return language(code).code


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a search's run directory")


def execute(arguments: argparse.Namespace, *, searching: bool) -> int:
    """Run `search` or `compare`, and print the report; returns the exit code."""
    from rich.console import Console

    from mptune.live.table import LiveView
    from mptune.search import application, preflight
    from mptune.spec.source import SpecFile

    # With --json, standard output is for the result alone.
    console = Console(stderr=arguments.json, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    cluster, arms = address(arguments), getattr(arguments, "arms", None) or ()
    if searching or arguments.dry_run:
        file = SpecFile.read(arguments.spec, arguments.overrides)
        spec = file.validate()
        for note in preflight.notes(file, spec) if searching else ():
            say(f"note: {note}")
        if arguments.dry_run:
            for line in preflight.dry_run(file, spec, searching, cluster):
                say(line)
            return 0
    command = shlex.join(["mptune", *(a for a in sys.argv[1:] if a not in ("--fresh", "--yes"))])
    start = application.search if searching else partial(application.compare, arms=arms)
    run = start(
        arguments.spec,
        arguments.run_dir,
        overrides=arguments.overrides,
        address=cluster,
        local=arguments.local,
        observer=partial(LiveView, console),
        fresh=arguments.fresh,
        yes=arguments.yes,
        say=say,
        command=command,
    )
    return answer(console, run, run.report(command), arguments.json, arguments.lang)


def answer(console: Console, run: Run, found: Report, as_json: bool, lang: str) -> int:
    """Write the report's files and print the report.

    Raises:
        NoResultError: no trial has finished.
    """
    from mptune import report
    from mptune.report.language import language

    say = language(lang)
    written = report.write(found, run.directory, say)
    if as_json:
        print(run.directory.report_json.read_text(encoding="utf-8"), end="")
    else:
        report.show(console, found, say)
        console.print(say("terminal.written"))
        folders = dict.fromkeys(p.parent for p in written if p.parent.name == "figures")
        for path in [*(p for p in written if p.parent not in folders), *folders]:
            console.print(f"  {path}", soft_wrap=True)
    compared = found.comparison.arms.values() if found.comparison else ()
    if not any(t.finished for t in (*found.trials, *chain.from_iterable(compared))):
        raise NoResultError("no trial finished; see the reasons above")
    return 0
