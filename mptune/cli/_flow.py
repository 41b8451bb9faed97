"""The way from a spec to a printed answer, for `search` and `compare`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console

from mptune import report
from mptune.analysis.results import Report
from mptune.cli import _arguments
from mptune.errors import InterruptedSearch, NoResultError
from mptune.paths import RunDirectory
from mptune.report.language import language
from mptune.search import budgets as _budgets
from mptune.search import kpi as _kpi
from mptune.search import notes as _notes
from mptune.search import refusals as _memory
from mptune.search.session import Session
from mptune.spec.schema import SearchSpec, build
from mptune.spec.source import SpecFile
from mptune.spec.space import Space


def run(arguments: argparse.Namespace, *, searching: bool, file: SpecFile | None = None) -> int:
    """Validate, drive, report; returns the exit code."""
    file = file or SpecFile.read(arguments.spec, arguments.overrides)
    # A run directory has a copy of its spec, and knows where its data are.
    spec = file.validate(data_is_here=not _is_stored(file, arguments.run_dir))
    Space(file).arms()
    # With --json, standard output is for the result alone.
    console = Console(stderr=arguments.json, highlight=False)
    for note in _notes.notes(file, spec) if searching else ():
        console.print(f"note: {note}", soft_wrap=True)
    if arguments.dry_run:
        _dry_run(console, file, spec, searching)
        for line in _memory.refusals(file, spec, _arguments.address(arguments)):
            console.print(f"  will be refused: {line}", soft_wrap=True, markup=False)
        return 0
    root = arguments.run_dir or Path("runs") / spec.name
    session = Session(
        file=file,
        spec=spec,
        run=RunDirectory(root),
        console=console,
        command=_command_again(),
        searching=searching,
        local=arguments.local,
        address=_arguments.address(arguments),
    )
    _kpi.check_importable(spec.score)
    with session.open(fresh=arguments.fresh, yes=arguments.yes):
        _drive(session, searching)
        session.measure_kpi()
    return answer(console, session.evidence(), session.run, arguments.json, arguments.lang)


def _is_stored(file: SpecFile, root: Path | None) -> bool:
    return root is not None and file.path == RunDirectory(root).resolved


def _drive(session: Session, searching: bool) -> None:
    try:
        if searching:
            session.search()
            session.confirm()
        if session.spec.compare is not None or not searching:
            session.compare()
    except InterruptedSearch:
        raise InterruptedSearch(
            f"interrupted; nothing that finished is lost. Go on with:\n  {session.command}"
        ) from None


def answer(console: Console, evidence: Report, run: RunDirectory, as_json: bool, lang: str) -> int:
    """Write the report and print what it says.

    Raises:
        NoResultError: no trial has finished.
    """
    say = language(lang)
    written = report.write(evidence, run, say)
    if as_json:
        print(run.report_json.read_text(encoding="utf-8"), end="")
    else:
        report.show(console, evidence, say)
        console.print(say("terminal.written"))
        for path in shown(written):
            console.print(f"  {path}", soft_wrap=True)
    arms = evidence.comparison.arms.values() if evidence.comparison else ()
    if not any(trial.finished for trial in (*evidence.trials, *chain(*arms))):
        raise NoResultError("no trial finished; see the reasons above")
    return 0


def shown(written: Sequence[Path]) -> list[Path]:
    """The report's files, with the folder of figures for all of them."""
    folders = dict.fromkeys(p.parent for p in written if p.parent.name == "figures")
    return [*(p for p in written if p.parent not in folders), *folders]


def _dry_run(console: Console, file: SpecFile, spec: SearchSpec, searching: bool) -> None:
    data, resources = build("data", spec.data), spec.resources
    console.print(f"{spec.name}: {data.words()}")
    if searching:
        arms = ", ".join(spec.search.arms) or "none"
        console.print(
            f"  search: {spec.search.trials} trials over {len(file.dimensions)} dimensions "
            f"({spec.search.sampler.kind}, pruner {spec.search.pruner.kind}); named arms: {arms}"
        )
        confirm = spec.search.confirm
        if confirm.top:
            console.print(f"  confirmation: {confirm.top} trials x {confirm.seeds} fresh seeds")
    if spec.compare is not None:
        count, most = len(spec.compare.arms), spec.compare.max_seeds
        more = f", up to {count * most} while undecided" if most else ""
        console.print(
            f"  comparison: {count * spec.compare.seeds} runs{more}: {', '.join(spec.compare.arms)}"
        )
    if searching and (shared := _budgets.words(spec)):
        console.print(f"  budgets: {shared}")
    console.print(
        f"  each trial: {resources.workers} workers x {resources.cpus_per_worker:g} CPUs, "
        f"{resources.gpus_per_worker:g} GPUs"
    )


def _command_again() -> str:
    kept = [a for a in sys.argv[1:] if a not in ("--fresh", "--yes")]
    return shlex.join(["mptune", *kept])
