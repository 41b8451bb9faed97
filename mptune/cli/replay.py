"""Recompute every number of a bundled report from its scores, without data or training.

Exit code 3 if any number differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

EXAMPLES = """\
examples:
  mptune replay quickstart.bundle.zip
  mptune replay quickstart.bundle.zip --into checked     # keep the run directory and its report
  mptune replay quickstart.bundle.zip --lang ja
  mptune replay quickstart.bundle.zip --json             # the recomputed numbers
"""

MAX_SHOWN = 10
"""Largest number of differences that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mptune.cli import _arguments

    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="written by `mptune bundle`")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="DIR",
        help="new folder for the unpacked run; default: a temporary one",
    )
    _arguments.add_json(parser)
    _arguments.add_lang(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.errors import InputError

    if arguments.into is None:
        with tempfile.TemporaryDirectory() as folder:
            return _replay(arguments, Path(folder))
    if arguments.into.exists():
        raise InputError(f"{arguments.into} exists; name a new folder")
    return _replay(arguments, arguments.into)


def _replay(arguments: argparse.Namespace, folder: Path) -> int:
    from mptune import report
    from mptune.errors import NoResultError
    from mptune.report.document import as_json
    from mptune.report.findings import findings
    from mptune.report.language import language
    from mptune.search.bundle import differences, report_again, unpack, wrong_scores

    say = language(arguments.lang)
    run = unpack(arguments.bundle, folder)
    stored = json.loads(run.directory.report_json.read_text(encoding="utf-8"))
    found = report_again(run, stored["input"])
    text = as_json(found)
    wrong = [*wrong_scores(run), *differences(stored, json.loads(text))]
    if arguments.into is not None:
        report.write(found, run.directory, say)
    if wrong:
        shown = "\n  ".join(wrong[:MAX_SHOWN])
        raise NoResultError(f"{arguments.bundle}: {len(wrong)} numbers differ:\n  {shown}")
    if arguments.json:
        print(text, end="")
    else:
        print(say("terminal.replayed", bundle=arguments.bundle))
        print("\n".join(findings(found, say).recommendation))
    return 0
