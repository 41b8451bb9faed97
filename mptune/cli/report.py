"""Write the report of a run directory again, and print its ranking and verdict."""

from __future__ import annotations

import argparse

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune report runs/quickstart
  mptune report runs/quickstart --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mptune.cli import _flow
    from mptune.cli._evidence import collect, stored_spec

    run_directory = _arguments.existing_run(arguments.run_dir)
    spec = stored_spec(run_directory)
    command = f"mptune search {run_directory.spec} --run-dir {run_directory.root}"
    evidence = collect(run_directory, spec, command)
    return _flow.answer(Console(highlight=False), evidence, run_directory, arguments.json)
