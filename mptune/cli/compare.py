"""Compare the arms named in a spec over paired seeds, with an interval on every difference.

Per seed, all arms share data order, initialisation and scoring plan. Values that an arm leaves open
are those of the best trial of the search in the run directory, if there is one. `--arms` compares
trials or policies of a finished search; runs of earlier comparisons are used again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mptune.cli import _arguments, _run

EXAMPLES = """\
examples:
  mptune compare search_spaces/fixed15-vs-accumulated.yaml
  mptune compare spec.yaml --set compare.seeds=5     # five seeds for each arm
  mptune compare runs/quickstart --arms "fixed r=0.15" best
  mptune compare runs/quickstart --arms "trial 2" "beta a=2 b=1 on width=128"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "spec", type=Path, metavar="SPEC|RUN_DIR", help="a search spec, or a finished search"
    )
    _arguments.add_overrides(parser)
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="best, 'trial 7', a named arm, or a policy such as 'fixed r=0.15', optionally "
        "with 'on width=128'; the first is the baseline",
    )
    _arguments.add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.spec.is_dir():
        from mptune.errors import InputError
        from mptune.search.run import Run

        directory = Run.open(arguments.spec).directory
        if arguments.fresh:
            raise InputError("--fresh would delete the search; give its SPEC instead of RUN_DIR")
        arguments.run_dir, arguments.spec = arguments.spec, directory.resolved
    return _run.execute(arguments, searching=False)
