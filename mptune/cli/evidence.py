"""Commands that check a run: against its storage, and a bundled report against its scores."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from mptune.cli._command import JSON, LANG, RUN_DIR, argument, command, flag, path
from mptune.errors import InputError, NoResultError, plural

MAX_SHOWN = 10
"""Largest number of differences that are printed."""


@command(
    RUN_DIR,
    flag("--repair", "repair the listed problems"),
    argument("--address", metavar="HOST:PORT", help="the Ray cluster to check, or auto"),
    JSON,
)
def run_fsck(run_dir: Path, repair: bool, address: str | None, as_json: bool) -> int:
    """Check that a run directory, its storage and its Ray cluster agree, and repair them.

    On the Ray cluster of the last search (or at `--address`), the command looks for gangs of this
    run whose driver has ended, and for machines that such a driver requested from the autoscaler.
    It skips these checks while a driver runs.

    Without `--repair`, nothing is changed. Results are never deleted: unusable files are moved to
    `lost+found/`. Exit code 0 if there is no problem left, 3 if there is one.

    examples:
      mptune fsck runs/quickstart               # problems, and what --repair would do
      mptune fsck runs/quickstart --repair
      mptune fsck runs/quickstart --address 10.0.0.1:6379
    """
    from mptune.search.fsck import check
    from mptune.search.run import Run

    found = check(Run.open(run_dir), repair, address)
    left = [f for f in found if f.repair is None or not repair]
    if as_json:
        rows = [
            {"where": f.where, "problem": f.problem, "action": f.action, "repaired": f not in left}
            for f in found
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        verb = "repaired" if repair else "would repair"
        for f in found:
            print(f"{f.where}: {f.problem}; {verb if f.repair else 'to do'}: {f.action}")
        print(f"{plural(len(found), 'problem')}, {len(left)} left" if found else "no problems")
    return 3 if left else 0


@command(
    RUN_DIR,
    path("--out", "FILE", "the bundle; default RUN_DIR.bundle.zip"),
)
def run_bundle(run_dir: Path, out: Path | None) -> None:
    """Pack the evidence behind a report into one file that `mptune replay` can check anywhere.

    The file contains the spec, the study, the frozen scoring plan, the score of every sequence and
    the report, each with its SHA-256 checksum. It contains no data and no weights.

    examples:
      mptune bundle runs/quickstart                          # runs/quickstart.bundle.zip
      mptune bundle runs/quickstart --out evidence.zip
    """
    from mptune.search.bundle import pack
    from mptune.search.run import Run

    run = Run.open(run_dir)
    root = run.directory.root
    target = out or root.with_name(f"{root.resolve().name}.bundle.zip")
    print(f"{target}: {pack(run, target)} files, {target.stat().st_size / 1e6:.1f} MB")


@command(
    path("bundle", "BUNDLE", "written by `mptune bundle`"),
    path("--into", "DIR", "new folder for the unpacked run; default: a temporary one"),
    JSON,
    LANG,
)
def run_replay(bundle: Path, into: Path | None, as_json: bool, lang: str) -> None:
    """Recompute every number of a bundled report from its scores, without data or training.

    Exit code 3 if any number differs.

    examples:
      mptune replay quickstart.bundle.zip
      mptune replay quickstart.bundle.zip --into checked     # keep the run directory and its report
      mptune replay quickstart.bundle.zip --lang ja
      mptune replay quickstart.bundle.zip --json             # the recomputed numbers
    """
    from mptune import report
    from mptune.report.document import as_json as json_of
    from mptune.report.findings import findings
    from mptune.report.language import language
    from mptune.search.bundle import differences, report_again, unpack, wrong_scores

    if into is not None and into.exists():
        raise InputError(f"{into} exists; name a new folder")
    say = language(lang)
    with TemporaryDirectory() if into is None else nullcontext(into) as folder:
        run = unpack(bundle, Path(folder))
        stored = json.loads(run.directory.report_json.read_text(encoding="utf-8"))
        found = report_again(run, stored["input"])
        text = json_of(found)
        wrong = [*wrong_scores(run), *differences(stored, json.loads(text))]
        if into is not None:
            report.write(found, run.directory, say)
    if wrong:
        shown = "\n  ".join(wrong[:MAX_SHOWN])
        raise NoResultError(f"{bundle}: {len(wrong)} numbers differ:\n  {shown}")
    if as_json:
        print(text, end="")
    else:
        print(say("terminal.replayed", bundle=bundle))
        print("\n".join(findings(found, say).recommendation))
