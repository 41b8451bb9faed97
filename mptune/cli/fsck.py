"""Check that a run directory, its storage and its Ray cluster agree, and repair them.

On the Ray cluster of the last search (or at `--address`), the command looks for gangs of this run
whose driver has ended, and for machines that such a driver requested from the autoscaler. It skips
these checks while a driver runs.

Without `--repair`, nothing is changed. Results are never deleted: unusable files are moved to
`lost+found/`. Exit code 0 if there is no problem left, 3 if there is one.
"""

from __future__ import annotations

import argparse
import json

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune fsck runs/quickstart               # problems, and what --repair would do
  mptune fsck runs/quickstart --repair
  mptune fsck runs/quickstart --address 10.0.0.1:6379
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--repair", action="store_true", help="repair the listed problems")
    parser.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster to check, or auto")
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.search.fsck import check
    from mptune.search.run import Run

    found = check(Run.open(arguments.run_dir), arguments.repair, arguments.address)
    left = [f for f in found if f.repair is None or not arguments.repair]
    if arguments.json:
        rows = [
            {"where": f.where, "problem": f.problem, "action": f.action,
             "repaired": arguments.repair and f.repair is not None}
            for f in found
        ]  # fmt: skip
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        verb = "repaired" if arguments.repair else "would repair"
        for f in found:
            print(f"{f.where}: {f.problem}; {verb if f.repair else 'to do'}: {f.action}")
        print(f"{len(found)} problems, {len(left)} left" if found else "no problems")
    return 3 if left else 0
