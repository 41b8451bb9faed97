"""Write the report of a run directory, and print its ranking and recommendation."""

from __future__ import annotations

import argparse

from mptune.cli import _arguments, _run

EXAMPLES = """\
examples:
  mptune report runs/quickstart
  mptune report runs/quickstart --lang ja      # in Japanese
  mptune report runs/quickstart --json
  mptune report runs/quickstart --size 110M    # best rate and gap, extrapolated
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument(
        "--size",
        action="append",
        metavar="N",
        help="extrapolate the trends over model size to N parameters, e.g. 110M (repeatable)",
    )
    _arguments.add_json(parser)
    _arguments.add_lang(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mptune.search.run import Run

    found = Run.open(arguments.run_dir)
    directory = found.directory
    command = f"mptune search {directory.spec} --run-dir {directory.root}"
    sizes = _sizes(arguments.size) if arguments.size else None
    console = Console(highlight=False)
    report = found.report(command, sizes)
    return _run.answer(console, found, report, arguments.json, arguments.lang)


def _sizes(texts: list[str]) -> list[float]:
    """Parameter counts: `110M` is 110e6.

    Raises:
        InputError: a text is not a size.
    """
    from pydantic import TypeAdapter, ValidationError

    from mptune.errors import InputError
    from mptune.spec.schema import Size

    try:
        return TypeAdapter(list[Size]).validate_python(texts)
    except ValidationError as error:
        wrong = error.errors()[0]["input"]
        raise InputError(f"--size {wrong}: not a size; give parameters, e.g. 110M") from None
