"""Runs a search or a comparison, and prints its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from mptune.cli import _arguments
from mptune.errors import NoResultError

if TYPE_CHECKING:
    from rich.console import Console

    from mptune.analysis.results import Report
    from mptune.search.run import Run


def execute(arguments: argparse.Namespace, *, searching: bool) -> int:
    """Run `search` or `compare`, and print the report; returns the exit code."""
    from rich.console import Console

    from mptune.live.table import LiveView
    from mptune.search import application, preflight

    # With --json, standard output is for the result alone.
    console = Console(stderr=arguments.json, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    cluster, arms = _arguments.address(arguments), getattr(arguments, "arms", None) or ()
    if searching or arguments.dry_run:
        file, spec = application.read_spec(
            arguments.spec, arguments.overrides, arguments.run_dir, arms
        )
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
