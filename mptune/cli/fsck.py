"""Check a run directory against its storage, and say what does not fit; `--repair` mends it.

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
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--repair", action="store_true", help="do what is said")
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from mptune import study
    from mptune.cli._evidence import stored_spec
    from mptune.cli._fsck import findings

    directory = _arguments.existing_run(arguments.run_dir)
    spec = stored_spec(directory)
    # A living driver's files are in motion: repairing excludes it.
    with study.driver_lock(directory) if arguments.repair else nullcontext():
        driven = not arguments.repair and study.is_driven(directory)
        found = findings(directory, spec, driven)
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
