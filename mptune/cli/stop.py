"""Stop a running search from another terminal; the same search command resumes it."""

from __future__ import annotations

import argparse

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune stop runs/quickstart          # running trials write a checkpoint first
  mptune stop runs/quickstart --now    # trials resume from their last checkpoint
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--now", action="store_true", help="do not wait for checkpoints")


def run(arguments: argparse.Namespace) -> int:
    from mptune.search.run import existing_directory, stop_driver

    directory = existing_directory(arguments.run_dir)
    if stop_driver(directory, now=arguments.now):
        print(f"{directory.root}: stopped; the same search command resumes it")
    else:
        print(f"{directory.root}: not running")
    return 0
