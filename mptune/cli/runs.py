"""Commands that run a search or a comparison."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mptune.cli import report
from mptune.cli._command import (
    JSON,
    LANG,
    OVERRIDES,
    SPEC,
    WHERE,
    address_of,
    argument,
    as_text,
    command,
    flag,
    path,
    show,
)
from mptune.dispatch import refuse_local
from mptune.errors import InputError
from mptune.paths import write_text

if TYPE_CHECKING:
    from mptune.search.run import Run

RUN = (
    path("--run-dir", "DIR", "folder of the run; default runs/NAME"),
    *WHERE,
    flag("--local", "run trials in this process, without Ray"),
    flag("--fresh", "delete the trials and start over"),
    flag("--yes", "with --fresh: do not ask"),
    flag("--dry-run", "print what would run and stop"),
    JSON,
    LANG,
)


@command(SPEC, OVERRIDES, *RUN)
def run_search(**given: Any) -> None:
    """Search mask-rate policies and model sizes; the same command again resumes.

    Optuna proposes, Ray dispatches, DeepSpeed trains, and every trial is scored by its accumulated
    log-marginal-likelihood estimate on one frozen plan. A spec with a `compare` section ends with
    the comparison of its arms over paired seeds. Ctrl-C stops every trial at its next step with a
    checkpoint.

    examples:
      mptune search search_spaces/quickstart.yaml
      mptune search spec.yaml --run-dir runs/long --set training.budget_tokens=2e8
      mptune search spec.yaml --fresh --yes     # delete the earlier trials of this run directory
      mptune search spec.yaml --dry-run         # what would run, without running it
    """
    execute(searching=True, **given)


@command(OVERRIDES, *RUN)
def run_demo(**given: Any) -> None:
    """Run the quickstart search, which comes with mptune; the same command again resumes.

    It trains tiny models on the source code of Python's standard library, downloads nothing, and
    writes runs/quickstart in the current folder. On 2 cores it takes 4 to 10 minutes.

    examples:
      mptune demo
      mptune demo --dry-run         # what would run, without running it
      mptune demo --local           # without Ray, in this process
    """
    execute(searching=True, spec=Path(str(files("mptune.cli") / "quickstart.yaml")), **given)


@command(
    path("spec", "SPEC|RUN_DIR", "a search spec, or a finished search"),
    OVERRIDES,
    argument(
        "--arms",
        nargs="+",
        default=(),
        metavar="ARM",
        help="best, 'trial 7', a named arm, or a policy such as 'fixed r=0.15', optionally with "
        "'on width=128'; the first is the baseline",
    ),
    *RUN,
)
def run_compare(**given: Any) -> None:
    """Compare the arms named in a spec over paired seeds, with an interval on every difference.

    Per seed, all arms share data order, initialisation and scoring plan. Values that an arm leaves
    open are those of the best trial of the search in the run directory, if there is one. `--arms`
    compares trials or policies of a finished search; runs of earlier comparisons are used again.

    examples:
      mptune compare search_spaces/fixed15-vs-accumulated.yaml
      mptune compare spec.yaml --set compare.seeds=5     # five seeds for each arm
      mptune compare runs/quickstart --arms "fixed r=0.15" best
      mptune compare runs/quickstart --arms "trial 2" "beta a=2 b=1 on width=128"
    """
    if given["spec"].is_dir():
        from mptune.search.run import Run

        directory = Run.open(given["spec"]).directory
        if given["fresh"]:
            raise InputError("--fresh would delete the search; give its SPEC instead of RUN_DIR")
        given |= {"run_dir": given["spec"], "spec": directory.resolved}
    execute(searching=False, **given)


@command(
    argument("names", nargs="*", metavar="NAME", help="claims, or all; default: list them"),
    path("--run-dir", "DIR", "folder of the runs; default runs/claims"),
    *WHERE,
    flag("--local", "run trials in this process, without Ray"),
    JSON,
)
def run_reproduce(names: list[str], run_dir: Path | None, as_json: bool, **where: Any) -> None:
    """Rerun claims about mask rates that others have published, in miniature, and judge them.

    Each is a comparison over paired seeds, with a run directory of its own. The verdict holds for
    its sizes, data and budget; the same command again continues. DIR/claims.md has all verdicts.

    examples:
      mptune reproduce                    # list the claims
      mptune reproduce bell spans
      mptune reproduce all                # about an hour on 2 cores
    """
    from rich.console import Console

    from mptune.live.table import LiveView
    from mptune.search import application, claims

    if not names:
        listed = {n: claim.model_dump(mode="json") for n, claim in claims.known_claims().items()}
        show({"claims": listed}, as_json, "claims")
        return
    console = Console(stderr=as_json, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    address = address_of(where["on"], where["address"])
    folder = run_dir or Path("runs/claims")

    options = {"address": address, "local": where["local"], "say": say}

    def run(how: str, spec: dict[str, Any], directory: Path) -> Run:
        start = application.search if how == "search" else application.compare
        return start(spec, directory, **options, observer=partial(LiveView, console))

    for name in claims.chosen(names):
        verdict = claims.reproduce(name, folder, run)
        say(f"{name}: {verdict.verdict}")
    verdicts = [verdict.model_dump(mode="json") for verdict in claims.stored(folder)]
    write_text(folder / "claims.md", as_text("verdicts", {"verdicts": verdicts}) + "\n")
    show({"verdicts": verdicts}, as_json, "verdicts")


def execute(
    *, searching: bool, spec: Path, on: Path | None, dry_run: bool, lang: str, **given: Any
) -> None:
    """Run `search` or `compare`, and print the report."""
    from rich.console import Console

    from mptune.live.table import LiveView
    from mptune.search import application, preflight

    # With --json, standard output is for the result alone.
    as_json = given.pop("as_json")
    console = Console(stderr=as_json, highlight=False)
    say = partial(console.print, soft_wrap=True, markup=False)
    given["address"] = address_of(on, given["address"])
    if searching or dry_run:
        file, checked = application.read_spec(
            spec, given["overrides"], given["run_dir"], given.get("arms", ())
        )
        for note in preflight.notes(file, checked) if searching else ():
            say(f"note: {note}")
        if dry_run:
            address = given["address"] or (
                None if given["local"] else os.environ.get("RAY_ADDRESS")
            )
            where = {"address": address, "local": given["local"]}
            if given["local"]:
                refuse_local(checked.resources)
            else:
                preflight.refuse_misfits(file, checked, address)
            for line in preflight.dry_run(file, checked, searching):
                say(line)
            found = preflight.expected(file, checked, **where, searching=searching)
            assert found is not None, "the data are prepared"
            say(as_text("plan", found))
            say(f"time is measured by: mptune plan {spec}")
            return
    again = shlex.join(["mptune", *(a for a in sys.argv[1:] if a not in ("--fresh", "--yes"))])
    start = application.search if searching else application.compare
    run = start(spec, **given, observer=partial(LiveView, console), say=say, command=again)
    shown = run.report(again)
    report.answer(console, run, shown, as_json, lang)
    report.publish(run, shown, say)
