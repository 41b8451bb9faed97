"""Check a run directory, its storage and its Ray cluster against one another, and repair them.

On the cluster of the last search, if it still answers, or of `--address`: gangs of this run that
were left without a driver, and machines that it asked the autoscaler for. Only `--repair`
changes anything. A living driver's are never touched.

Nothing that a search found is ever removed: what cannot be used is moved to `lost+found/`.
Exit code 0 when all is well or was repaired, 3 when something is left to do.
"""

from __future__ import annotations

import argparse
import json

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune fsck runs/quickstart               # what is wrong, and what --repair would do
  mptune fsck runs/quickstart --repair
  mptune fsck runs/quickstart --address 10.0.0.1:6379
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--repair", action="store_true", help="make the repairs that are listed")
    parser.add_argument("--address", metavar="HOST:PORT", help="look at this Ray cluster, or auto")
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
        print(f"{len(found)} problems, {len(left)} left" if found else "all is well")
    return 3 if left else 0
