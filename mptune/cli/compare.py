"""Compare the arms named in a spec over paired seeds, with an interval on every difference.

Per seed, all arms share data order, initialisation and scoring plan. What an arm leaves open is
taken from the best trial of the search in the run directory, if there is one.
"""

from __future__ import annotations

import argparse

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune compare search_spaces/fixed15-vs-accumulated.yaml
  mptune compare spec.yaml --set compare.seeds=5     # two more seeds for each arm
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_spec(parser)
    _arguments.add_run(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would run and stop")


def run(arguments: argparse.Namespace) -> int:
    from mptune.cli import _flow

    return _flow.run(arguments, searching=False)
