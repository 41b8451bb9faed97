"""Check our arithmetic: the estimator where log p(x) is known exactly, and the founding paper."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from mptune.cli import _arguments
from mptune.errors import NoResultError

EXAMPLES = """\
examples:
  mptune verify --quick        half a minute
  mptune verify --json         every figure, for machines

exit codes: 0 every check passed, 3 one failed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer replications")
    parser.add_argument("--seed", type=int, default=0, help="of masks and data; default 0")
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune import verify

    began, found, part = time.monotonic(), [], ""
    for check in verify.verify(quick=arguments.quick, seed=arguments.seed):
        found.append(check)
        if arguments.json:
            continue
        if check.part != part:
            print(f"\n{check.part}")
            part = check.part
        print(f"  {'ok  ' if check.passed else 'FAIL'}  {check.name:<21} {check.words}", flush=True)
    failed = [f"{check.part}, {check.name}: {check.words}" for check in found if not check.passed]
    if arguments.json:
        checks = [asdict(check) for check in found]
        print(json.dumps({"passed": not failed, "checks": checks}, indent=2, ensure_ascii=False))
    else:
        seconds = time.monotonic() - began
        print(f"\n{len(found) - len(failed)} of {len(found)} checks passed in {seconds:.0f} s")
    if failed:
        sys.stdout.flush()
        raise NoResultError(f"{len(failed)} of {len(found)} checks failed; {failed[0]}")
    return 0
