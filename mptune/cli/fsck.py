"""Check a run directory, its storage and its Ray cluster against one another, and mend them.

On the cluster of the last search, if it still answers, or of `--address`: gangs of this run that
are left without a driver, and machines that the autoscaler was asked for by one. Only `--repair`
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
    parser.add_argument("--repair", action="store_true", help="do what is said")
    parser.add_argument("--address", metavar="HOST:PORT", help="look at this Ray cluster, or auto")
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from mptune import study
    from mptune.search.evidence import stored_spec
    from mptune.search.fsck import findings
    from mptune.study.lease import held

    directory = _arguments.existing_run(arguments.run_dir)
    spec = stored_spec(directory)
    storage = spec.storage
    with ExitStack() as excluded:
        if arguments.repair:  # a living driver's files and gangs are in motion
            excluded.enter_context(study.driver_lock(directory))
            excluded.enter_context(held(storage.url, spec.name, storage.lease_timeout_s))
        driven = not arguments.repair and study.is_driven(directory)
        found = findings(directory, spec, driven, arguments.address)
        for one in found:
            if arguments.repair and one.repair is not None:
                one.repair()
    left = [f for f in found if f.repair is None or not arguments.repair]
    if arguments.json:
        told = [
            {"where": f.where, "problem": f.problem, "action": f.action,
             "repaired": arguments.repair and f.repair is not None}
            for f in found
        ]  # fmt: skip
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        verb = "repaired" if arguments.repair else "would repair"
        for f in found:
            print(f"{f.where}: {f.problem}; {verb if f.repair else 'to do'}: {f.action}")
        print(f"{len(found)} problems, {len(left)} left" if found else "all is well")
    return 3 if left else 0
